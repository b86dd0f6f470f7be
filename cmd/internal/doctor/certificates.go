package doctor

import (
	"fmt"
	"strings"
	"time"

	"fermata/protocol/identity"
)

// certificates looks at when the certificates of this machine expire.
func (m machine) certificates() finding {
	now := time.Now()
	status := OK
	var said []string
	soonest := time.Time{}
	for _, path := range m.Certificates {
		c, err := identity.ReadCertificate(path)
		if err != nil {
			status = Fail
			said = append(said, err.Error())
			continue
		}
		if soonest.IsZero() || c.NotAfter.Before(soonest) {
			soonest = c.NotAfter
		}
		if c.Due(now) {
			said = append(said, c.Warning(now))
			if now.After(c.NotAfter) {
				status = Fail
			} else if status == OK {
				status = Warn
			}
		}
	}
	switch {
	case len(said) > 0:
		return finding{status, fmt.Sprintf("%d of %d need attention", len(said), len(m.Certificates)), strings.Join(said, "\n  ")}
	case len(m.Certificates) == 0:
		return ok("none on this machine")
	default:
		return ok("%d, the first expires on %s", len(m.Certificates), soonest.UTC().Format(time.DateOnly))
	}
}
