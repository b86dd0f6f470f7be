package identity

import (
	"crypto/sha256"
	"encoding/hex"
)

// Installation tells installations apart: it is the same for all who trust one authority,
// also after certificates, the authority's among them, were renewed.
func (i *Identity) Installation() string {
	sum := sha256.Sum256(i.current().ca.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
