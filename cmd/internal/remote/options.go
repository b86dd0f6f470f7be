// Package remote reaches the coordinator: it finds out where it is and who the
// operator is, from flags, the environment and the machine's configuration,
// and opens the connection that every operator command uses.
package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"fermata/protocol/address"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// Environment variables that stand for flags.
const (
	EnvCoordinator = "FERMATA_COORDINATOR" // --coordinator
	EnvCerts       = "FERMATA_CERTS"       // directory of operator.crt, operator.key and ca.crt
	EnvLab         = "FERMATA_LAB"         // --lab
)

// ConfigDir is where a machine says how its operators reach the coordinator:
// the file operator.yaml and, unless that names another directory, the
// certificates.
const ConfigDir = "/etc/fermata"

// Names below a lab directory.
const (
	LabSocket = "coordinator.sock"
	LabCerts  = "certs"
)

// Names in a directory of certificates.
const (
	certFile = "operator.crt"
	keyFile  = "operator.key"
)

// Options are the flags that name the coordinator and the operator.
type Options struct {
	Coordinator []string
	Cert        string
	Key         string
	CA          string
	Plaintext   bool
	Lab         string

	// ConfigDir replaces the constant of that name when not empty.
	ConfigDir string
}

// AddFlags adds the flags to fs.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.Coordinator, "coordinator", nil, "`address` of the coordinator, host:port or unix:PATH; of several the one that leads answers (env "+EnvCoordinator+")")
	fs.StringVar(&o.Cert, "cert", "", "certificate `file` of the operator (env "+EnvCerts+" names its directory)")
	fs.StringVar(&o.Key, "key", "", "key `file` of the operator")
	fs.StringVar(&o.CA, "ca", "", "certificate `file` of the authority")
	fs.BoolVar(&o.Plaintext, "plaintext", false, "speak without certificates, on loopback and unix sockets only")
	fs.StringVar(&o.Lab, "lab", "", "lab `directory`, with "+LabSocket+" and "+LabCerts+"/ (env "+EnvLab+")")
}

// Target is where the coordinator is and how to speak to it.
type Target struct {
	Addresses []string       // at least one
	Plaintext bool           // Files are not used
	Files     identity.Files // of the operator
}

// machineConfig is operator.yaml, decoded strictly:
//
//	coordinator: [head1:7410, head2:7410]
//	certs: /etc/fermata
type machineConfig struct {
	Coordinator []string `yaml:"coordinator"`
	Certs       string   `yaml:"certs"`
}

// Resolve decides between the sources. Whatever a flag says wins over the
// environment, and that over the machine's configuration; of one rank, an
// address of its own wins over a lab.
func (o Options) Resolve(getenv func(string) string) (Target, error) {
	dir := o.ConfigDir
	if dir == "" {
		dir = ConfigDir
	}
	machine, err := readMachineConfig(filepath.Join(dir, "operator.yaml"))
	if err != nil {
		return Target{}, err
	}
	t := Target{Plaintext: o.Plaintext, Addresses: firstList(
		o.Coordinator, labAddress(o.Lab), split(getenv(EnvCoordinator)), labAddress(getenv(EnvLab)), machine.Coordinator)}
	if len(t.Addresses) == 0 {
		return Target{}, fault.New(fault.Invalid, "no coordinator: name it with --coordinator or --lab, %s or %s, or in %s",
			EnvCoordinator, EnvLab, filepath.Join(dir, "operator.yaml"))
	}
	for _, a := range t.Addresses {
		if err := checkAddress(a, t.Plaintext); err != nil {
			return Target{}, fault.Wrap(fault.Invalid, err, "")
		}
	}
	if t.Plaintext {
		if o.Cert != "" || o.Key != "" || o.CA != "" {
			return Target{}, fault.New(fault.Invalid, "--plaintext excludes --cert, --key and --ca")
		}
		return t, nil
	}
	certs := first(labCerts(o.Lab), getenv(EnvCerts), labCerts(getenv(EnvLab)), machine.Certs, dir)
	t.Files = identity.Files{
		Cert: first(o.Cert, filepath.Join(certs, certFile)),
		Key:  first(o.Key, filepath.Join(certs, keyFile)),
		CA:   first(o.CA, filepath.Join(certs, identity.CACertFile)),
	}
	return t, nil
}

func readMachineConfig(path string) (machineConfig, error) {
	var c machineConfig
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil {
		return c, fault.Wrap(fault.Invalid, err, "read configuration %s", path)
	}
	return c, nil
}

// checkAddress refuses what can not be an address before it is dialled.
func checkAddress(addr string, plaintext bool) error {
	_, isUnix := address.Unix(addr)
	switch err := address.Check(addr); {
	case isUnix && err != nil:
		return fmt.Errorf("coordinator: %w", err)
	case err != nil, strings.HasPrefix(addr, ":"):
		return fmt.Errorf("coordinator %q: want host:port or unix:PATH", addr)
	}
	if plaintext {
		return identity.PlaintextAllowed(addr)
	}
	return nil
}

func labAddress(dir string) []string {
	if dir == "" {
		return nil
	}
	return []string{"unix:" + filepath.Join(dir, LabSocket)}
}

func labCerts(dir string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, LabCerts)
}

func split(list string) []string {
	var words []string
	for w := range strings.SplitSeq(list, ",") {
		if w = strings.TrimSpace(w); w != "" {
			words = append(words, w)
		}
	}
	return words
}

func first(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

func firstList(lists ...[]string) []string {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}
