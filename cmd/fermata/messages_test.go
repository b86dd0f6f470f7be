package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/operatortest"
	"fermata/protocol/fault"
)

// TestMessages fixes what a new user reads when something is wrong: what was attempted,
// on what, why it failed and what to do next, in one line, with the status of its class.
// With -o json the same is a document.
func TestMessages(t *testing.T) {
	t.Setenv(envRepository, "")
	t.Setenv("FERMATA_LAB", "")
	t.Setenv("FERMATA_COORDINATOR", "")
	repository := testRepository(t)
	server := operatortest.New(t)
	here := []string{"--coordinator", server.Address, "--plaintext"}
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "daemon.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name  string
		args  []string
		class fault.Class
		says  string // the whole message, or its beginning before …
		hint  string // part of it
	}{
		{"cluster that is not there", append(here, "cluster", "show", "nosuch"), fault.NotFound,
			"show cluster nosuch: no cluster nosuch", ""},
		{"checkpoint of a cluster that is not there", append(here, "checkpoint", "nosuch"), fault.NotFound,
			"checkpoint nosuch: no cluster nosuch", ""},
		{"prune of a cluster that is not there", []string{"repo", "prune", "--repository", repository, "--cluster", "dmo", "--keep-last", "1"}, fault.NotFound,
			"prune repository: the repository has no checkpoints of a cluster dmo; did you mean demo?", "did you mean demo?"},
		{"copy of a cluster that is not there", []string{"repo", "copy", "--repository", repository, "--to", testRepository(t), "--cluster", "other-one"}, fault.NotFound,
			"copy checkpoints: the repository has no checkpoints of a cluster other-one; it has those of demo", "demo"},
		{"nobody listens", []string{"--coordinator", "127.0.0.1:1", "--plaintext", "cluster", "list"}, fault.Unavailable,
			"list clusters: cannot reach the coordinator at 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused; start it there, or name another with --coordinator or --lab", "start it there"},
		{"no certificate", []string{"--coordinator", "127.0.0.1:1", "--cert", "/absent.crt", "cluster", "list"}, fault.Denied,
			"list clusters: no operator's certificate: /absent.crt does not exist; name one with --cert, --key and --ca, or a lab with --lab; make one with fermata certs issue --role operator --name NAME", "certs issue"},
		{"agent without a certificate", []string{"agent", "--config", file("name: n7\nlisten: 127.0.0.1:1\n")}, fault.Invalid,
			"certificate: missing; a daemon has a certificate, a key and the authority's certificate; issue them with fermata certs issue --role agent --name n7, or set plaintext: true on loopback", "--role agent --name n7"},
		{"agent whose certificate is not there", []string{"agent", "--config", file("name: n7\ncertificate: /absent.crt\nkey: /absent.key\nca: /absent.ca\n")}, fault.Denied,
			"certificate: /absent.crt does not exist; issue them", "certs issue"},
		{"coordinator without a key", []string{"coordinator", "--config", file("certificate: /c\nca: /a\n")}, fault.Invalid,
			"key: missing; a daemon has", "--role coordinator"},
		{"etcd password in the address", []string{"coordinator", "--config", file("listen: [127.0.0.1:0]\nplaintext: true\nrepository: /r\netcd: {endpoints: [\"http://u:p@127.0.0.1:2379\"]}\n")}, fault.Invalid,
			"…endpoint http://127.0.0.1:2379: a user and a password in the address are not used; set username and password_file", ""},
		{"lab without nodes", []string{"lab", "--dir", t.TempDir(), "--nodes", "0"}, fault.Invalid,
			"--nodes 0: want at least 1", ""},
		{"label", append(here, "checkpoint", "demo", "--label", "a\u202eb"), fault.Invalid,
			`--label: character U+202E at byte 2 of "a\u202eb" cannot be shown`, ""},
		{"verb that stands elsewhere", append(here, "cluster", "restart", "demo"), fault.Invalid,
			`unknown command "restart" for "fermata cluster", did you mean "fermata restart demo"?…`, ""},
	} {
		r := fermata(t, nil, c.args...)
		line, one := strings.CutSuffix(r.stderr, "\n")
		message, prefixed := strings.CutPrefix(line, "fermata: ")
		if r.status != c.class.ExitCode() || !one || strings.Contains(line, "\n") || !prefixed {
			t.Errorf("%s: status %d, want %d and one line; stderr %q", c.name, r.status, c.class.ExitCode(), r.stderr)
		}
		if want := strings.Trim(c.says, "…"); !strings.Contains(message, want) || !strings.HasPrefix(c.says, "…") && !strings.HasPrefix(message, want) {
			t.Errorf("%s:\n got %s\nwant %s", c.name, message, c.says)
		}

		r = fermata(t, nil, append(c.args, "-o", "json")...)
		var doc struct {
			Error struct {
				Class, Message, Hint string
				ExitStatus           int `json:"exit_status"`
			}
		}
		if c.args[0] == "agent" || c.args[0] == "coordinator" || c.args[0] == "lab" || strings.HasPrefix(c.name, "verb") {
			continue // daemons, and groups of verbs, have no result and no -o
		}
		dec := json.NewDecoder(strings.NewReader(r.stderr))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&doc); err != nil || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: -o json: %v; stdout %q, stderr %q", c.name, err, r.stdout, r.stderr)
			continue
		}
		e := doc.Error
		if e.Class != c.class.String() || e.ExitStatus != c.class.ExitCode() || r.status != e.ExitStatus || e.Message != message || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%s: -o json: %+v, want class %v, the message %q and a hint with %q", c.name, e, c.class, message, c.hint)
		}
	}
}

// asked runs a command line at a terminal whose operator answers.
func asked(t *testing.T, server *operatortest.Server, answer string, args ...string) (stderr string, err error) {
	t.Helper()
	var out, complaints bytes.Buffer
	err = run(context.Background(), &app.Env{
		Args: append([]string{"--coordinator", server.Address, "--plaintext"}, args...), Asks: true,
		Stdin: strings.NewReader(answer), Stdout: &out, Stderr: &complaints, Getenv: func(string) string { return "" },
	})
	return complaints.String(), err
}

// What cannot be undone is asked at a terminal, and only there.
func TestConfirm_VerbsThatDestroy(t *testing.T) {
	t.Setenv(envRepository, testRepository(t))
	for _, verb := range []string{
		"cluster stop demo", "cluster delete demo", "checkpoints delete demo@1", "rollback demo",
	} {
		for _, c := range []struct {
			answer string
			flag   string
			goes   bool
		}{{"\n", "", false}, {"n\n", "", false}, {"", "", false}, {"y\n", "", true}, {"Yes\n", "", true}, {"", "--yes", true}} {
			server := operatortest.New(t)
			stderr, err := asked(t, server, c.answer, strings.Fields(verb+" "+c.flag)...)
			if went := len(server.Requests()) > 0; went != c.goes {
				t.Errorf("%s, answer %q, %s: goes on: %v, want %v (%v)", verb, c.answer, c.flag, went, c.goes, err)
			}
			if !c.goes && fault.ClassOf(err) != fault.Aborted {
				t.Errorf("%s, answer %q: %v, want class aborted", verb, c.answer, err)
			}
			if question := strings.Contains(stderr, "Go on? [y/N]"); question == (c.flag != "") {
				t.Errorf("%s %s: asked: %v; stderr %q", verb, c.flag, question, stderr)
			}
		}
		// A script is not asked.
		server := operatortest.New(t)
		if r := fermata(t, server, strings.Fields(verb)...); strings.Contains(r.stderr, "[y/N]") || len(server.Requests()) == 0 {
			t.Errorf("%s in a script: stderr %q", verb, r.stderr)
		}
	}
	for _, harmless := range []string{"rollback demo --dry-run", "restart demo", "checkpoint demo"} {
		server := operatortest.New(t)
		if stderr, _ := asked(t, server, "", strings.Fields(harmless+"")...); strings.Contains(stderr, "[y/N]") {
			t.Errorf("%s asks: %q", harmless, stderr)
		}
	}
	if stderr, err := asked(t, operatortest.New(t), "n\n", "repo", "prune", "--keep-last", "1"); fault.ClassOf(err) != fault.Aborted || !strings.Contains(stderr, "--dry-run") {
		t.Errorf("prune: %v, %q", err, stderr)
	}
}
