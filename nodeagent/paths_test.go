package nodeagent

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fermata/protocol/fault"
)

// tree makes a directory that is allowed, one that is not, and one that is the
// agent's own, each with a file.
func tree(t *testing.T) (rules pathRules, allowed, outside, own string) {
	t.Helper()
	dir := t.TempDir()
	allowed, outside, own = filepath.Join(dir, "allowed"), filepath.Join(dir, "outside"), filepath.Join(dir, "allowed", "own")
	for _, d := range []string{allowed, outside, own} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "file"), []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return pathRules{allowed: []string{allowed}, reserved: []string{own}}, allowed, outside, own
}

func TestPathRules_Open(t *testing.T) {
	rules, allowed, outside, own := tree(t)
	link := func(name, to string) string {
		path := filepath.Join(allowed, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(allowed, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil { // opening it would hang
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path  string
		class fault.Class
		says  string
	}{
		"allowed":                   {filepath.Join(allowed, "file"), fault.None, ""},
		"link inside":               {link("good", "file"), fault.None, ""},
		"outside":                   {filepath.Join(outside, "file"), fault.Denied, "allowed_paths"},
		"outside, absent":           {filepath.Join(outside, "absent"), fault.Denied, "allowed_paths"},
		"outside by dots":           {allowed + "/../outside/file", fault.Denied, "allowed_paths"},
		"like the allowed":          {allowed + "-not/file", fault.Denied, "allowed_paths"},
		"link to the outside":       {link("bad", "../outside/file"), fault.Denied, outside},
		"link in the middle":        {filepath.Join(link("dir", outside), "file"), fault.Denied, outside},
		"link of the agent's own":   {link("sly", filepath.Join(own, "file")), fault.Denied, "agent itself"},
		"the agent's own":           {filepath.Join(own, "file"), fault.Denied, "agent itself"},
		"absent":                    {filepath.Join(allowed, "absent"), fault.Invalid, "no such file"},
		"pipe":                      {fifo, fault.Invalid, "not a regular file"},
		"directory":                 {allowed, fault.Invalid, "not a regular file"},
		"device":                    {"/dev/zero", fault.Denied, "allowed_paths"},
		"password file of the host": {"/etc/shadow", fault.Denied, "allowed_paths"},
	} {
		f, err := rules.open(c.path)
		if err == nil {
			f.Close()
		}
		if fault.ClassOf(err) != c.class || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want class %s and %q", name, err, c.class, c.says)
		}
	}
}

// TestPathRules_AllowedDirectoryIsALink: /srv may itself lead elsewhere.
func TestPathRules_AllowedDirectoryIsALink(t *testing.T) {
	_, allowed, _, _ := tree(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(allowed, link); err != nil {
		t.Fatal(err)
	}
	f, err := pathRules{allowed: []string{link}}.open(filepath.Join(link, "file"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestPathRules_CheckSocket(t *testing.T) {
	rules, allowed, outside, _ := tree(t)
	for name, c := range map[string]struct {
		dir   string
		class fault.Class
	}{"allowed": {allowed, fault.None}, "outside": {outside, fault.Denied}} {
		path := filepath.Join(c.dir, "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := rules.checkSocket(path); fault.ClassOf(err) != c.class {
			t.Errorf("%s: %v, want class %s", name, err, c.class)
		}
	}
	if err := rules.checkSocket(filepath.Join(allowed, "file")); fault.ClassOf(err) != fault.Invalid {
		t.Errorf("regular file: %v, want class invalid", err)
	}
}
