package nodeagent

import (
	"strings"
	"testing"

	"fermata/imageio/repository"
)

// What is advertised must be an address that others can dial.
func TestConfig_Addresses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // part of the refusal; empty: accepted
	}{
		{"one address", func(*Config) {}, ""},
		{"every address", func(c *Config) { c.Listen = "0.0.0.0:7420" }, "advertise: missing, and 0.0.0.0:7420 stands for every address of this node: say at which one others reach it, such as n1:7420"},
		{"every address, v6", func(c *Config) { c.FabricListen = "[::]:7421" }, "fabric_advertise: missing"},
		{"every address, advertised", func(c *Config) { c.Listen, c.Advertise = ":7420", "n1:7420" }, ""},
		{"advertised nonsense", func(c *Config) { c.Advertise = "[::]:1" }, "advertise: \"[::]:1\" stands for every address"},
		{"advertised nothing", func(c *Config) { c.FabricAdvertise = "n1" }, "fabric_advertise: \"n1\" is neither"},
		{"coordinator", func(c *Config) { c.Coordinators = []string{"head"} }, "coordinators: \"head\" is neither"},
	} {
		cfg := Config{
			Name: "n1", StateDir: "/s", MemoryDir: "/m", Repository: repository.Config{Dir: "/r"},
			Listen: "192.0.2.1:7420", FabricListen: "192.0.2.1:7421", MemoryBytes: 1, CaptureBytes: 1,
		}
		c.change(&cfg)
		if err := cfg.applyDefaults(); err != nil {
			t.Fatal(err)
		}
		err := cfg.Validate()
		text := strings.ReplaceAll(err.Error(), "certificate: missing (or ask for plain text on loopback)", "")
		if (strings.TrimSpace(text) == "") != (c.want == "") || !strings.Contains(text, c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
