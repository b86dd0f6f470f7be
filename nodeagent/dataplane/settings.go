package dataplane

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/hashicorp/go-hclog"

	"fermata/nodeagent/fabric"
	"fermata/protocol/identity"
)

var (
	// errOtherSettings means that the process was started with other settings.
	errOtherSettings = errors.New("the data plane runs with other settings")
	// errOtherVersion means that the process speaks another version of the protocol.
	errOtherVersion = errors.New("the data plane speaks another version")
)

// Settings are what the first agent gives the process. Every later one must give the
// same, as far as it cannot change while guests use the fabric.
type Settings struct {
	Node   string `json:"node"`
	Listen string `json:"listen"` // host:port for links of other nodes

	// Identity names the files of the node's certificate. Plaintext: links are bare TCP.
	Identity  identity.Files `json:"identity"`
	Plaintext bool           `json:"plaintext"`

	// The others may change, and count from then on: the level of the log, and the bound
	// on the memory of all frames together, where 0 is the fabric's default.
	LogLevel   string `json:"log_level"`
	FrameBytes int64  `json:"frame_bytes"`
}

// fixed is what must not change.
func (s Settings) fixed() Settings {
	s.LogLevel, s.FrameBytes = "", 0
	return s
}

// fabricConfig is how a fabric is made of the settings. The listener is the fabric's.
func (s Settings) fabricConfig(incarnation string, l net.Listener, log hclog.Logger) (fabric.Config, error) {
	var id *identity.Identity
	if !s.Plaintext {
		var err error
		if id, err = identity.Load(s.Identity.Cert, s.Identity.Key, s.Identity.CA); err != nil {
			return fabric.Config{}, err
		}
	}
	cfg := FabricConfig(s.Node, incarnation, l, id, log)
	cfg.TotalBytes = s.FrameBytes
	return cfg, nil
}

// FabricConfig is the configuration of a node's fabric whose links prove who is at
// their ends by id, or with none are bare TCP.
func FabricConfig(node, incarnation string, l net.Listener, id *identity.Identity, log hclog.Logger) fabric.Config {
	cfg := fabric.Config{Node: node, Incarnation: incarnation, Listener: l, Plaintext: id == nil, Logger: log}
	if id != nil {
		cfg.ServerTLS = id.Server(identity.RoleAgent)
		cfg.ClientTLS = func(node string) *tls.Config { return id.Client(identity.RoleAgent, node) }
		cfg.PeerName = func(cs tls.ConnectionState) (string, error) {
			peer, err := identity.PeerOf(cs)
			if err != nil {
				return "", fmt.Errorf("peer of link: %w", err)
			}
			return peer.Name, nil
		}
	}
	return cfg
}

// Inside is a fabric in the agent's own process. It ends with the agent.
type Inside struct{ *fabric.Fabric }

// Belongs implements Plane: the fabric does not outlive its agent, so it need not know
// whom it lives for.
func (Inside) Belongs(string, string, int) error { return nil }

var _ Plane = Inside{}
