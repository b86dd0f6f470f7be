package app

import (
	"runtime"
	"runtime/debug"
)

// Version is the running binary's version in one word, as nodes announce it.
func Version() string { return Build().Version }

// BuildInfo tells which fermata this is, from what the Go tool put into the binary.
type BuildInfo struct {
	Version  string // of the module; (devel) when built outside a repository
	Revision string // of the repository; empty when unknown
	Modified bool   // built from a tree with changes
	Go       string
}

// Build returns what is known of the running binary.
func Build() BuildInfo {
	v := BuildInfo{Version: "(devel)", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}
