package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/coordinator"
	"fermata/coordinator/etcdembed"
	"fermata/imageio/repository"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// coordinatorFile is the configuration file of a coordinator:
// configs/coordinator.yaml.
type coordinatorFile struct {
	Listen    []string `yaml:"listen"`
	Advertise string   `yaml:"advertise"`

	repositoryPlace `yaml:",inline"`

	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
	Plaintext   bool   `yaml:"plaintext"`

	Etcd struct {
		Embedded    string        `yaml:"embedded"`
		Endpoints   []string      `yaml:"endpoints"`
		Certificate string        `yaml:"certificate"`
		Key         string        `yaml:"key"`
		CA          string        `yaml:"ca"`
		Prefix      string        `yaml:"prefix"`
		LeaderTTL   time.Duration `yaml:"leader_ttl"`

		Username     string         `yaml:"username"`
		PasswordFile string         `yaml:"password_file"`
		CompactAfter *time.Duration `yaml:"compact_after"`
	} `yaml:"etcd"`

	// Writers is how many nodes write to the repository at a time.
	Writers int `yaml:"writers"`

	NodeLeaseTTL time.Duration `yaml:"node_lease_ttl"`
	Timeouts     struct {
		Describe time.Duration `yaml:"describe"`
		Create   time.Duration `yaml:"create"`
		Release  time.Duration `yaml:"release"`
		Destroy  time.Duration `yaml:"destroy"`
		Prepare  time.Duration `yaml:"prepare"`
		Cut      time.Duration `yaml:"cut"`
		Persist  time.Duration `yaml:"persist"`
		Finish   time.Duration `yaml:"finish"`
	} `yaml:"timeouts"`
}

func (f coordinatorFile) config(ctx context.Context, log hclog.Logger) (coordinator.Config, error) {
	key, err := f.load(ctx)
	if err != nil {
		return coordinator.Config{}, err
	}
	cfg := coordinator.Config{
		Listen: f.Listen, Advertise: f.Advertise, Plaintext: f.Plaintext,
		Repository: repository.Config{Dir: f.Repository, Key: key},
		Writers:    f.Writers, NodeLeaseTTL: f.NodeLeaseTTL, Timeouts: coordinator.Timeouts(f.Timeouts), Logger: log,
		Etcd: coordinator.Etcd{Endpoints: f.Etcd.Endpoints, Prefix: f.Etcd.Prefix, LeaderTTL: f.Etcd.LeaderTTL, Username: f.Etcd.Username, CompactAfter: f.Etcd.CompactAfter},
	}
	if f.Etcd.PasswordFile != "" {
		password, err := readSecret(f.Etcd.PasswordFile)
		if err != nil {
			return cfg, fault.Wrap(fault.Invalid, err, "etcd password_file")
		}
		cfg.Etcd.Password = password
	}
	if !f.Plaintext {
		id, err := daemonIdentity(identity.RoleCoordinator, "NAME", f.Certificate, f.Key, f.CA)
		if err != nil {
			return cfg, err
		}
		cfg.Identity = id
	}
	if f.Etcd.Embedded != "" {
		cfg.Etcd.Embedded = &etcdembed.Config{Dir: f.Etcd.Embedded, Identity: cfg.Identity, Logger: log.Named("etcd")}
	}
	if f.Etcd.Certificate != "" || f.Etcd.Key != "" || f.Etcd.CA != "" {
		tlsConfig, err := etcdTLS(f.Etcd.Certificate, f.Etcd.Key, f.Etcd.CA)
		if err != nil {
			return cfg, err
		}
		cfg.Etcd.TLS = tlsConfig
	}
	return cfg, nil
}

// readSecret reads a password; the newline that editors leave at its end is none of it.
func readSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s: mode %04o lets others read it; chmod 600", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret, nil
}

// etcdTLS reads the certificates of a real etcd, which has an authority of its own. An
// etcd that asks for a user and a password may do without the client's certificate.
func etcdTLS(cert, key, ca string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if cert != "" || key != "" {
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "etcd certificate")
		}
		// Read for each handshake, of which there are few: it may have been renewed.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
	}
	if ca == "" {
		return nil, fault.New(fault.Invalid, "etcd ca: missing; it is the authority of etcd's certificate")
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "etcd authority")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "etcd authority %s: no certificate in it", ca)
	}
	cfg.RootCAs = pool
	return cfg, nil
}

// newCoordinatorCommand runs a coordinator in the foreground.
func newCoordinatorCommand(env *app.Env) *cobra.Command {
	var (
		file string
		log  logFlags
	)
	cmd := &cobra.Command{
		Use:   "coordinator --config FILE",
		Short: "Run a coordinator",
		Long: `Run a coordinator in the foreground until it is told to end.

Several may run against one etcd; one of them leads, and another takes over
when it dies. Guests never depend on it: when none runs they go on, and only
checkpoints and restarts wait.`,
		Example: `  fermata coordinator --config /etc/fermata/coordinator.yaml`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			env.OnInterrupt("coordinator ends, guests run on")
			var f coordinatorFile
			if err := readConfig(file, &f); err != nil {
				return err
			}
			logger, err := log.logger(env.Stderr, "coordinator")
			if err != nil {
				return err
			}
			cfg, err := f.config(cmd.Context(), logger)
			if err != nil {
				return err
			}
			if err := env.DropInherited(); err != nil {
				return err
			}
			if err := failpoint.ArmAll(env.Getenv(failpoint.Env)); err != nil {
				return fault.Wrap(fault.Invalid, err, "")
			}
			c, err := coordinator.New(cfg)
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "%s", file)
			}
			defer watchIdentity(cmd.Context(), cfg.Identity, logger)()
			return endedAsAsked(cmd.Context(), c.Run(cmd.Context()))
		},
	}
	cmd.Flags().StringVar(&file, "config", "/etc/fermata/coordinator.yaml", "configuration `FILE`")
	log.add(cmd)
	return cmd
}
