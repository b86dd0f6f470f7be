package main

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/render"
	"fermata/cmd/internal/view"
	"fermata/protocol/identity"
)

// renewals is the document of "certs renew".
type renewals struct {
	Certificates []renewal `json:"certificates"`
}

// renewal is one certificate that was looked at.
type renewal struct {
	Role     string       `json:"role"` // authority, or that of the holder
	Name     string       `json:"name"`
	CertFile string       `json:"cert_file"`
	Expires  view.Instant `json:"expires"`
	Renewed  bool         `json:"renewed"`
}

// WriteTable writes a line a certificate.
func (d renewals) WriteTable(w io.Writer) error {
	rows := render.NewRows("ROLE", "NAME", "CERTIFICATE", "EXPIRES", "RENEWED")
	for _, c := range d.Certificates {
		renewed := "no"
		if c.Renewed {
			renewed = "yes"
		}
		rows.Add(c.Role, c.Name, c.CertFile, render.Time(c.Expires.Time), renewed)
	}
	return rows.Write(w)
}

func newCertsRenewCommand(env *app.Env) *cobra.Command {
	var r renewer
	var format render.Format
	c := &cobra.Command{
		Use:   "renew [FILE.crt…]",
		Short: "Renew certificates, or the authority itself",
		Long: `Renew certificates: make a new key and a new certificate for the same holder, in
the same files. Without a file, renew every certificate in the directory of the
authority that expires within 30 days, and list the others. Copy the new files
to their machines; daemons use them from the next connection on, without a
restart.

With --authority, renew the authority's own certificate instead. Its key stays, so
every certificate that it has issued stays valid: copy ca.crt to all machines, then
renew the certificates. Restart a coordinator with an embedded etcd after that.`,
		Example: `  fermata certs renew --dir ca
  fermata certs renew --dir ca node1.crt node2.crt
  fermata certs renew --dir ca --authority`,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case r.validity < 0:
				return app.Usagef("--validity %s: negative", r.validity)
			case r.authority && (len(args) > 0 || r.all):
				return app.Usagef("--authority renews the authority alone: name no certificate")
			case r.all && len(args) > 0:
				return app.Usagef("--all: name no certificate")
			}
			d, err := r.run(args)
			if err != nil {
				return classifyFile(err)
			}
			return render.Write(env.Stdout, format, d)
		},
	}
	c.Flags().StringVar(&r.dir, "dir", certsDir(env), "`directory` of the authority")
	c.Flags().BoolVar(&r.authority, "authority", false, "renew the authority's own certificate")
	c.Flags().BoolVar(&r.all, "all", false, "renew every certificate in the directory, however long it is valid")
	c.Flags().DurationVar(&r.validity, "validity", 0, "how long the new ones are valid (default as long as the old ones, an authority ten years)")
	formatFlag(c, &format)
	return c
}

// renewer is what "certs renew" was asked for.
type renewer struct {
	dir       string
	authority bool
	all       bool
	validity  time.Duration
}

func (r renewer) run(files []string) (renewals, error) {
	var certs []identity.Certificate
	var err error
	for _, f := range files {
		c, err := identity.ReadCertificate(f)
		if err != nil {
			return renewals{}, err
		}
		certs = append(certs, c)
	}
	if len(files) == 0 {
		if certs, err = identity.CertificatesIn(r.dir); err != nil {
			return renewals{}, err
		}
	}
	d := renewals{Certificates: []renewal{}}
	for _, c := range certs {
		due := r.wants(c, len(files) > 0)
		if due {
			if c, err = r.renew(c); err != nil {
				return d, err
			}
		}
		role, name := string(c.Peer.Role), c.Peer.Name
		if c.Authority {
			role = "authority"
		}
		d.Certificates = append(d.Certificates, renewal{role, name, c.Path, view.Instant{Time: c.NotAfter}, due})
	}
	return d, nil
}

func (r renewer) wants(c identity.Certificate, named bool) bool {
	if c.Authority || r.authority {
		return c.Authority && r.authority
	}
	return named || r.all || c.Due(time.Now())
}

func (r renewer) renew(c identity.Certificate) (identity.Certificate, error) {
	if c.Authority {
		if err := identity.RenewAuthority(r.dir, r.validity); err != nil {
			return c, err
		}
	} else if _, err := identity.Renew(r.dir, c.Path, r.validity); err != nil {
		return c, err
	}
	return identity.ReadCertificate(c.Path)
}
