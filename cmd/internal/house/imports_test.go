package house

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// arrow is an import that must not be, through any number of packages.
type arrow struct {
	from   string // package, or a folder of packages when it ends in /...
	to     string // the same
	except string // a package that may be reached all the same
	reason string
	remedy string
}

var forbidden = []arrow{
	{from: "fermata/coordinator/...", to: "fermata/nodeagent/...",
		reason: "coordinator and node agent run on different machines and meet on the wire",
		remedy: "put what both need into protocol, or a call into protocol/api"},
	{from: "fermata/nodeagent/...", to: "fermata/coordinator/...",
		reason: "coordinator and node agent run on different machines and meet on the wire",
		remedy: "put what both need into protocol, or a call into protocol/api"},
	{from: "fermata/coordinator/...", to: "fermata/vmm/...",
		reason: "the coordinator never learns what a virtual machine is made of",
		remedy: "let the node agent do it and report"},
	{from: "fermata/protocol/...", to: "fermata/vmm/...",
		reason: "protocol, vmm and imageio do not know each other, so that each can be understood and replaced alone",
		remedy: "join them in nodeagent"},
	{from: "fermata/protocol/...", to: "fermata/imageio/...",
		reason: "protocol, vmm and imageio do not know each other, so that each can be understood and replaced alone",
		remedy: "join them in nodeagent or coordinator"},
	{from: "fermata/vmm/...", to: "fermata/imageio/...", except: "fermata/imageio/extent",
		reason: "protocol, vmm and imageio do not know each other; byte ranges (imageio/extent) are the one noun they share",
		remedy: "let the caller in nodeagent hand the bytes on, or take an interface declared in vmm"},
	{from: "fermata/vmm/...", to: "fermata/protocol/...",
		reason: "protocol, vmm and imageio do not know each other; vmm has sentinels of its own",
		remedy: "return an error of package vmm and classify it in nodeagent"},
	{from: "fermata/imageio/...", to: "fermata/vmm/...",
		reason: "protocol, vmm and imageio do not know each other, so that each can be understood and replaced alone",
		remedy: "take an interface declared in imageio"},
	{from: "fermata/imageio/...", to: "fermata/protocol/...",
		reason: "protocol, vmm and imageio do not know each other; imageio has sentinels of its own",
		remedy: "return an error of package imageio and classify it in nodeagent or coordinator"},
}

// Layers, from the top.
var (
	services  = []string{"fermata/coordinator/...", "fermata/nodeagent/..."}
	libraries = []string{"fermata/protocol/...", "fermata/vmm/...", "fermata/imageio/..."}
)

func TestImports_OnlyGoDown(t *testing.T) {
	rules := slices.Clone(forbidden)
	for _, library := range libraries {
		for _, service := range services {
			rules = append(rules, arrow{from: library, to: service,
				reason: "a library does not know who uses it",
				remedy: "move what is needed down to where its noun lives, or take an interface"})
		}
	}
	for _, layer := range slices.Concat(services, libraries) {
		for _, above := range []string{"fermata/cmd/...", "fermata/experiments/..."} {
			rules = append(rules, arrow{from: layer, to: above,
				reason: "cmd and experiments wire the services and the libraries; nothing stands on wiring",
				remedy: "move what is needed down to where its noun lives"})
		}
	}
	graph := imports(packages(t))
	for _, p := range packages(t) {
		for _, rule := range rules {
			if !within(p.ImportPath, rule.from) {
				continue
			}
			if path := reach(graph, p.ImportPath, rule); path != nil {
				t.Errorf("%s must not import %s, but does: %s\n\twhy: %s\n\tinstead: %s",
					p.ImportPath, rule.to, strings.Join(path, " → "), rule.reason, rule.remedy)
			}
		}
	}
}

// TestImports_TestsKeepToTheArrows allows a test what its package may import,
// and the suites and doubles of its own layer, but not the other service.
func TestImports_TestsKeepToTheArrows(t *testing.T) {
	for _, p := range packages(t) {
		for _, rule := range forbidden {
			if !within(p.ImportPath, rule.from) {
				continue
			}
			for _, to := range slices.Concat(p.TestImports, p.XTestImports) {
				// Every test may say what it needs of the machine.
				if within(to, rule.to) && to != rule.except && to != "fermata/protocol/mustrun" {
					t.Errorf("the tests of %s must not import %s\n\twhy: %s\n\tinstead: %s, or move the test to experiments",
						p.ImportPath, to, rule.reason, rule.remedy)
				}
			}
		}
	}
}

// alone lists the packages that build on the standard library alone, and why.
var alone = map[string]string{
	"fermata/protocol/round": "the protocol core is a pure state machine: what it imports, the simulator and every reader have to trust",
	"fermata/imageio/extent": "byte ranges are shared by libraries that must not know each other",
}

func TestImports_StandardLibraryOnly(t *testing.T) {
	for _, p := range packages(t) {
		reason, ok := alone[p.ImportPath]
		if !ok {
			continue
		}
		for _, to := range p.Imports {
			if strings.Contains(firstPart(to), ".") || firstPart(to) == module {
				t.Errorf("%s must build on the standard library alone, but imports %s\n\twhy: %s\n\tinstead: let the caller pass it in",
					p.ImportPath, to, reason)
			}
		}
	}
}

func TestImports_LibrariesDoNotLog(t *testing.T) {
	loggers := []string{"github.com/hashicorp/go-hclog", "log", "log/slog"}
	for _, p := range packages(t) {
		if !within(p.ImportPath, "fermata/imageio/...") && !within(p.ImportPath, "fermata/vmm/...") && !within(p.ImportPath, "fermata/protocol/...") {
			continue
		}
		for _, to := range p.Imports {
			if slices.Contains(loggers, to) {
				t.Errorf("%s must not import %s\n\twhy: a library does not decide what its user reads\n\tinstead: return the error, or call an optional Events callback",
					p.ImportPath, to)
			}
		}
	}
}

// TestArrows_NameWhatExists catches a rule that a renamed package has made void.
func TestArrows_NameWhatExists(t *testing.T) {
	named := slices.Collect(maps.Keys(alone))
	for _, rule := range forbidden {
		named = append(named, rule.from, rule.to)
		if rule.except != "" {
			named = append(named, rule.except)
		}
	}
	for _, pattern := range named {
		if !slices.ContainsFunc(packages(t), func(p pkg) bool { return within(p.ImportPath, pattern) }) {
			t.Errorf("no package is %s: the rule that names it watches nothing; correct it", pattern)
		}
	}
}

func imports(pkgs []pkg) map[string][]string {
	graph := map[string][]string{}
	for _, p := range pkgs {
		graph[p.ImportPath] = p.Imports
	}
	return graph
}

// reach returns the way from a package to one that rule forbids, or nil.
func reach(graph map[string][]string, from string, rule arrow) []string {
	seen := map[string]bool{from: true}
	ways := [][]string{{from}}
	for len(ways) > 0 {
		way := ways[0]
		ways = ways[1:]
		for _, to := range graph[way[len(way)-1]] {
			if seen[to] || to == rule.except {
				continue
			}
			seen[to] = true
			next := append(slices.Clone(way), to)
			if within(to, rule.to) {
				return next
			}
			ways = append(ways, next)
		}
	}
	return nil
}

// within tells whether path is the package, or below the folder, of pattern.
func within(path, pattern string) bool {
	folder, wide := strings.CutSuffix(pattern, "/...")
	return path == folder || wide && strings.HasPrefix(path, folder+"/")
}

func firstPart(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}

func TestReach_FindsTheWay(t *testing.T) {
	graph := map[string][]string{"a": {"b", "ok"}, "b": {"c/d"}, "ok": {"c/x"}}
	rule := arrow{to: "c/...", except: "ok"}
	if got := strings.Join(reach(graph, "a", rule), " "); got != "a b c/d" {
		t.Errorf("way %q", got)
	}
	if got := reach(map[string][]string{"a": {"ok"}, "ok": {"c/x"}}, "a", rule); got != nil {
		t.Errorf("way %q through an exception", got)
	}
}
