package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/remote"
	"fermata/cmd/internal/render"
	"fermata/cmd/internal/view"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// certificate is the document of "certs init" and "certs issue".
type certificate struct {
	Role     string       `json:"role"` // authority, or that of the holder
	Name     string       `json:"name"`
	CertFile string       `json:"cert_file"`
	KeyFile  string       `json:"key_file"`
	CAFile   string       `json:"ca_file"`
	Expires  view.Instant `json:"expires"`
}

// WriteTable writes what was made.
func (d certificate) WriteTable(w io.Writer) error {
	var f render.Fields
	f.Add("role", d.Role)
	f.Add("name", d.Name)
	f.Add("certificate", d.CertFile)
	f.Add("key", d.KeyFile)
	f.Add("authority", d.CAFile)
	f.Add("expires", render.Time(d.Expires.Time))
	return f.Write(w)
}

func newCertsCommand(env *app.Env) *cobra.Command {
	return newGroup("certs", "Make and renew the certificate authority and the certificates",
		newCertsInitCommand(env),
		newCertsIssueCommand(env),
		newCertsRenewCommand(env),
	)
}

// certsDir is where the authority is unless --dir names another place.
func certsDir(env *app.Env) string {
	if dir := env.Getenv(remote.EnvCerts); dir != "" {
		return dir
	}
	return remote.ConfigDir
}

func newCertsInitCommand(env *app.Env) *cobra.Command {
	var dir string
	var validity time.Duration
	var format render.Format
	c := &cobra.Command{
		Use:   "init",
		Short: "Make the certificate authority of an installation",
		Long: `Make the certificate authority of an installation. ca.crt goes to every machine;
ca.key issues certificates of every role, so keep it off machines that need not.
An authority that exists is never replaced.`,
		Example: `  fermata certs init --dir certs
  fermata certs init --dir certs --validity 8760h`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if validity < 0 {
				return app.Usagef("--validity %s: negative", validity)
			}
			if err := identity.CreateCA(dir, validity); err != nil {
				return classifyFile(err)
			}
			return render.Write(env.Stdout, format, certificate{
				Role:     "authority",
				CertFile: filepath.Join(dir, identity.CACertFile),
				KeyFile:  filepath.Join(dir, identity.CAKeyFile),
				CAFile:   filepath.Join(dir, identity.CACertFile),
			})
		},
	}
	c.Flags().StringVar(&dir, "dir", certsDir(env), "`directory` of the authority")
	c.Flags().DurationVar(&validity, "validity", 0, "how long it is valid (default ten years)")
	formatFlag(c, &format)
	return c
}

func newCertsIssueCommand(env *app.Env) *cobra.Command {
	var dir, role, out string
	var req identity.Request
	var format render.Format
	c := &cobra.Command{
		Use:   "issue --role ROLE --name NAME",
		Short: "Issue a certificate for an operator, a coordinator or an agent",
		Long: `Issue a certificate. An operator's name is free, a coordinator's is that of its
machine, an agent's must be the name of its node. Unless --out says otherwise
the files are operator.crt, coordinator.crt or, for an agent, NAME.crt, and .key,
in the directory of the authority.`,
		Example: `  fermata certs issue --role operator --name alice
  fermata certs issue --role coordinator --name head1
  fermata certs issue --role agent --name node1 --out /root/node1`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			req.Role = identity.Role(role)
			if err := req.Validate(); err != nil {
				return app.Usage(fmt.Errorf("issue certificate: %w", err))
			}
			prefix := out
			if prefix == "" {
				prefix = filepath.Join(dir, defaultPrefix(req))
			}
			files, err := identity.Issue(dir, req, prefix)
			if err != nil {
				return classifyFile(err)
			}
			issued, err := identity.Load(files.Cert, files.Key, files.CA)
			if err != nil {
				return err
			}
			return render.Write(env.Stdout, format, certificate{
				Role: string(req.Role), Name: req.Name,
				CertFile: files.Cert, KeyFile: files.Key, CAFile: files.CA,
				Expires: view.Instant{Time: issued.NotAfter()},
			})
		},
	}
	c.Flags().StringVar(&dir, "dir", certsDir(env), "`directory` of the authority")
	c.Flags().StringVar(&role, "role", "", "operator, coordinator or agent")
	c.Flags().StringVar(&req.Name, "name", "", "of the person, the coordinator or the node")
	c.Flags().StringSliceVar(&req.Hosts, "host", nil, "further host `name`s and addresses of a server")
	c.Flags().StringVar(&out, "out", "", "write PREFIX.crt and `PREFIX`.key")
	c.Flags().DurationVar(&req.Validity, "validity", 0, "how long it is valid (default one year)")
	c.Flags().BoolVar(&req.Replace, "replace", false, "overwrite files that exist")
	for _, flag := range []string{"role", "name"} {
		if err := c.MarkFlagRequired(flag); err != nil {
			panic(err) // the flag is defined above
		}
	}
	mustComplete(c, "role", []string{string(identity.RoleOperator), string(identity.RoleCoordinator), string(identity.RoleAgent)})
	formatFlag(c, &format)
	return c
}

// defaultPrefix names the files after the role, or an agent's after its node
// unless that name is taken by another file of the directory.
func defaultPrefix(req identity.Request) string {
	if req.Role != identity.RoleAgent {
		return string(req.Role)
	}
	switch req.Name {
	case "ca", string(identity.RoleOperator), string(identity.RoleCoordinator):
		return "agent-" + req.Name
	default:
		return req.Name
	}
}

// classifyFile gives an error about files the class of its cause.
func classifyFile(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, err, "")
	case errors.Is(err, fs.ErrExist):
		return fault.Wrap(fault.Exists, err, "")
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Denied, err, "")
	default:
		return err
	}
}
