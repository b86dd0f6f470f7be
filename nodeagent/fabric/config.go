package fabric

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Defaults of Config.
const (
	// DefaultQueueBytes bounds the frames that wait for a NIC while it is open:
	// a few milliseconds at 1 Gbit/s. More would only lengthen the wire.
	DefaultQueueBytes = 1 << 20
	// DefaultHoldBytes bounds the frames that wait for a NIC while it is gated:
	// two seconds of 1 Gbit/s, far longer than a pause.
	DefaultHoldBytes = 256 << 20
	// DefaultLinkBytes bounds the frames a link keeps until the other node has
	// acknowledged them. It must cover bandwidth × round trip (10 Gbit/s ×
	// 1 ms = 1.25 MB), but what waits here at a cut lengthens the pause.
	DefaultLinkBytes = 4 << 20
	// DefaultTotalBytes bounds all of that together.
	DefaultTotalBytes = 1 << 30
	// DefaultStallTime is how long a guest may leave its receive ring full while
	// others are held up for it, before its frames are dropped. A guest that runs
	// refills its ring within a scheduling delay; a second of none means no driver,
	// a halt, or a host that is busy beyond measure.
	DefaultStallTime = time.Second
)

// maxNameBytes bounds the names of nodes, clusters and networks.
const maxNameBytes = 255

// Config holds what a Fabric needs. The zero value of an optional field
// selects the default written beside it.
type Config struct {
	// Node is this node's name; its peers know it by it. Required.
	Node string
	// Incarnation tells this life of the agent from earlier ones: link
	// sequences start anew with it. Required.
	Incarnation string
	// Listener accepts the links of other nodes. The fabric closes it. Required.
	Listener net.Listener

	// ServerTLS, ClientTLS and PeerName make links mutual TLS. All three or,
	// with Plaintext, none.
	//
	// ServerTLS must demand and verify a certificate of who dials. PeerName reads
	// the node's name from it; a link whose hello says another name is refused.
	ServerTLS *tls.Config
	PeerName  func(tls.ConnectionState) (string, error)
	// ClientTLS is asked for each connection to the node of that name. What it
	// returns must show this node's certificate and verify that the server is
	// that node.
	ClientTLS func(node string) *tls.Config
	// Plaintext makes links bare TCP, where anybody who reaches the listener can
	// claim any name. It must be asked for.
	Plaintext bool

	QueueBytes int           // per NIC while open; default DefaultQueueBytes
	HoldBytes  int           // per NIC while gated; default DefaultHoldBytes
	LinkBytes  int           // per link; default DefaultLinkBytes
	TotalBytes int64         // of all NICs, links and uplinks together; default DefaultTotalBytes
	StallTime  time.Duration // default DefaultStallTime

	Logger hclog.Logger // discards when nil
}

func (c *Config) applyDefaults() {
	if c.QueueBytes == 0 {
		c.QueueBytes = DefaultQueueBytes
	}
	if c.HoldBytes == 0 {
		c.HoldBytes = DefaultHoldBytes
	}
	if c.LinkBytes == 0 {
		c.LinkBytes = DefaultLinkBytes
	}
	if c.TotalBytes == 0 {
		c.TotalBytes = DefaultTotalBytes
	}
	if c.StallTime == 0 {
		c.StallTime = DefaultStallTime
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
}

// Validate reports every problem at once.
func (c Config) Validate() error {
	errs := []error{checkName("node", c.Node), checkName("incarnation", c.Incarnation)}
	if c.Listener == nil {
		errs = append(errs, errors.New("listener: missing"))
	}
	errs = append(errs, c.validateTLS()...)
	for _, l := range []struct {
		name  string
		bytes int
	}{{"queue bytes", c.QueueBytes}, {"hold bytes", c.HoldBytes}, {"link bytes", c.LinkBytes}} {
		if l.bytes < 0 {
			errs = append(errs, fmt.Errorf("%s: negative (%d)", l.name, l.bytes))
		}
	}
	if c.TotalBytes < 0 {
		errs = append(errs, fmt.Errorf("total bytes: negative (%d)", c.TotalBytes))
	}
	if c.StallTime < 0 {
		errs = append(errs, fmt.Errorf("stall time: negative (%s)", c.StallTime))
	}
	return errors.Join(errs...)
}

func (c Config) validateTLS() []error {
	if c.Plaintext {
		if c.ServerTLS != nil || c.ClientTLS != nil || c.PeerName != nil {
			return []error{errors.New("plaintext: given together with TLS")}
		}
		return nil
	}
	var errs []error
	if c.ServerTLS == nil || c.ClientTLS == nil {
		return append(errs, errors.New("server and client TLS: missing, and plaintext not asked for"))
	}
	if c.PeerName == nil {
		errs = append(errs, errors.New("peer name: missing"))
	}
	if c.ServerTLS.ClientAuth < tls.RequireAnyClientCert {
		errs = append(errs, errors.New("server TLS: does not demand a client certificate"))
	}
	if c.ServerTLS.ClientAuth == tls.RequireAnyClientCert && c.ServerTLS.VerifyConnection == nil && c.ServerTLS.VerifyPeerCertificate == nil {
		errs = append(errs, errors.New("server TLS: does not verify the client certificate"))
	}
	return errs
}

func checkName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s: missing", what)
	case len(name) > maxNameBytes:
		return fmt.Errorf("%s: %d bytes, limit %d", what, len(name), maxNameBytes)
	}
	return nil
}
