package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/operatortest"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// budget bounds what a test waits for: far above what it takes, far below what
// a hung test costs.
const budget = 10 * time.Second

// playProgram has the test binary be the program itself, for tests that need a process.
const playProgram = "FERMATA_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(playProgram) != "" {
		os.Exit(app.Main(run, os.Args[1:], os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

func TestExitStatus_IsTheClass(t *testing.T) {
	for _, class := range fault.Classes() {
		server := operatortest.New(t)
		server.Fail = fault.New(class, "because")
		for _, args := range [][]string{{"cluster", "list"}, {"checkpoint", "demo"}} {
			r := fermata(t, server, args...)
			if r.status != class.ExitCode() || r.stdout != "" || !strings.HasSuffix(r.stderr, ": because\n") {
				t.Errorf("%s: %v: status %d, want %d; stdout %q, stderr %q", class, args, r.status, class.ExitCode(), r.stdout, r.stderr)
			}
		}
	}
}

func TestError_SaysWhatWasToBeDoneOnce(t *testing.T) {
	server := operatortest.New(t)
	server.Fail = fault.New(fault.Busy, "list clusters: because")
	if r := fermata(t, server, "cluster", "list"); r.stderr != "fermata: list clusters: because\n" {
		t.Errorf("%q", r.stderr)
	}
}

// TestMistakes_AreOneLine: whatever is wrong with a command line is told in
// one line, with a status of its own, and nothing is asked of the coordinator.
func TestMistakes_AreOneLine(t *testing.T) {
	server := operatortest.New(t)
	for _, c := range []struct {
		args   string // words
		status int
		says   string
	}{
		{"", 2, `"fermata" needs a command: `},
		{"clustr", 2, `did you mean "cluster"`},
		{"cluster", 2, `"fermata cluster" needs a command: console, create`},
		{"cluster lst", 2, `did you mean "list"`},
		{"cluster restart demo", 2, `did you mean "fermata restart demo"? It does this: Restart`},
		{"cluster rollback demo", 2, `did you mean "fermata rollback demo"?`},
		{"cluster bogus", 2, `unknown command "bogus" for "fermata cluster"`},
		{"completion tcsh", 2, `unknown command "tcsh"`},
		{"cluster list extra", 2, `"extra"`},
		{"cluster show", 2, "CLUSTER is missing"},
		{"cluster show a b", 2, `unexpected argument "b"`},
		{"cluster list -o xml", 2, "want table, json, yaml"},
		{"cluster list --nope", 2, "unknown flag: --nope"},
		{"cluster create", 2, `"file" not set`},
		{"cluster create -f absent.yaml", 3, "absent.yaml"},
		{"cluster start demo --on node1", 2, "GUEST=NODE only"},
		{"cluster console demo", 2, "GUEST is missing"},
		{"checkpoint demo --progress loud", 2, "want auto, plain, none"},
		{"checkpoint demo --label " + strings.Repeat("x", 257), 2, "--label: 257 bytes"},
		{"checkpoint demo --label good\u202edab", 2, "U+202E at byte 5"},
		{"checkpoint demo --label bell\a", 2, "U+0007"},
		{"checkpoint demo --label a\xffb", 2, "not UTF-8"},
		{"cluster show a\xffb", 2, `name "a\xffb" is not UTF-8`},
		{"cluster start a\xffb", 2, `name "a\xffb" is not UTF-8`},
		{"restart demo --on a\xff=n1", 2, "is not UTF-8"},
		{"checkpoint demo --mode stop --audit", 2, "mode stop tracks nothing"},
		{"checkpoint demo --full --audit", 2, "give one of them"},
		{"adopt demo a=/run/a.qmp", 2, "GUEST=NODE:SOCKET"},
		{"adopt demo", 2, "at least 2 arg"},
		{"checkpoints show demo", 2, "want CLUSTER@EPOCH"},
		{"checkpoints show demo@0", 2, "want CLUSTER@EPOCH"},
		{"checkpoints show demo@07", 2, "want CLUSTER@EPOCH"},
		{"checkpoints show @7", 2, "want CLUSTER@EPOCH"},
		{"restart demo --from newest", 2, "EPOCH or latest"},
		{"restart demo --from other@1", 2, "a checkpoint of cluster other"},
		{"restart demo --on a=", 2, "want GUEST=NODE or NODE"},
		{"restart demo --on a=n1,,b=n2", 2, "an entry is empty"},
		{"lab --dir x --nodes 0", 2, "--nodes 0: want at least 1"},
		{"lab --dir x --nodes -1", 2, "nodes: -1, want 1 to 100"},
		{"lab --dir x --nodes 101", 2, "nodes: 101, want 1 to 100"},
		{"lab --dir x --node-memory 0", 2, "--node-memory 0"},
		{"lab --dir x --node-capture -1", 2, "memory: negative"},
		{"certs issue --role king --name x", 2, `role "king"`},
		{"certs issue --role agent", 2, `"name" not set`},
	} {
		r := fermata(t, server, strings.Fields(c.args)...)
		if r.status != c.status || r.stdout != "" {
			t.Errorf("fermata %s: status %d, want %d; stdout %q, stderr %q", c.args, r.status, c.status, r.stdout, r.stderr)
		}
		if strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "fermata: ") || !strings.Contains(r.stderr, c.says) {
			t.Errorf("fermata %s: %q, want one line with %q", c.args, r.stderr, c.says)
		}
	}
	if asked := server.Requests(); len(asked) > 0 {
		t.Errorf("the coordinator was asked %v", asked)
	}
}

func TestCoordinator_NotReached(t *testing.T) {
	t.Setenv("FERMATA_COORDINATOR", "")
	t.Setenv("FERMATA_LAB", "")
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"--coordinator", "unix:" + filepath.Join(t.TempDir(), "none"), "--plaintext", "cluster", "list"}, 7, "no such file or directory"},
		{[]string{"--coordinator", "192.0.2.1:7000", "--plaintext", "cluster", "list"}, 2, "only loopback addresses"},
		{[]string{"--coordinator", "nowhere", "--plaintext", "cluster", "list"}, 2, "want host:port"},
		{[]string{"--coordinator", "127.0.0.1:1", "--plaintext", "--cert", "x", "cluster", "list"}, 2, "--plaintext excludes"},
		{[]string{"--coordinator", "127.0.0.1:1", "--cert", "absent.crt", "cluster", "list"}, 14, "absent.crt"},
	} {
		r := fermata(t, nil, c.args...)
		if r.status != c.status || !strings.Contains(r.stderr, c.says) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%v: status %d, want %d; stderr %q, want %q", c.args, r.status, c.status, r.stderr, c.says)
		}
	}
}

// TestInterrupt_CancelsTheRound sends a real signal while a checkpoint runs. The
// command says what became of it.
func TestInterrupt_CancelsTheRound(t *testing.T) {
	for _, tc := range []struct {
		name    string
		verdict error
		old     bool
		status  int
		says    string
	}{
		{"aborted", fault.New(fault.Aborted, "round demo@5 aborted: cancelled"), false, app.ExitInterrupted, "the checkpoint was aborted, and the guests keep running"},
		{"committed", nil, false, 0, "the checkpoint was committed before it could be aborted"},
		{"not known", fault.New(fault.Unknown, "round demo@5: it is not known yet"), false, fault.Unknown.ExitCode(), "it is not known yet"},
		{"a coordinator that cannot be asked", nil, true, app.ExitInterrupted, "interrupted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := operatortest.New(t)
			server.Hold, server.Verdict, server.Old = true, tc.verdict, tc.old
			done := make(chan result, 1)
			go func() { done <- fermata(t, server, "checkpoint", "demo", "--progress", "plain") }()
			waitFor(t, func() bool { return len(server.Requests()) == 1 })
			if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			select {
			case <-server.Cancelled():
			case <-time.After(budget):
				t.Fatal("the call was not cancelled")
			}
			select {
			case r := <-done:
				if r.status != tc.status || (r.stdout != "") != (tc.status == 0) || !strings.Contains(r.stderr, tc.says) {
					t.Errorf("status %d, stdout %q, stderr:\n%s", r.status, r.stdout, r.stderr)
				}
			case <-time.After(budget):
				t.Fatal("the command goes on")
			}
		})
	}
}

func waitFor(t *testing.T, holds func() bool) {
	t.Helper()
	deadline := time.After(budget)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it does not come true")
		}
	}
}

func TestProgress_StaysOutOfTheResult(t *testing.T) {
	server := operatortest.New(t)
	r := fermata(t, server, "checkpoint", "demo", "--progress", "plain", "-o", "json")
	if want := "prepare\npersist node1\n"; r.status != 0 || r.stderr != want {
		t.Errorf("status %d, stderr %q, want %q", r.status, r.stderr, want)
	}
	if !json.Valid([]byte(r.stdout)) {
		t.Errorf("stdout is not one document: %s", r.stdout)
	}
}

func TestFollow_NoResultIsUnknown(t *testing.T) {
	server := operatortest.New(t)
	server.Silent = true
	if r := fermata(t, server, "checkpoint", "demo"); r.status != fault.Unknown.ExitCode() || r.stdout != "" {
		t.Errorf("status %d, want %d; stdout %q, stderr %q", r.status, fault.Unknown.ExitCode(), r.stdout, r.stderr)
	}
}

func TestVerify_DamageIsShownAndFails(t *testing.T) {
	r := fermata(t, operatortest.New(t), "checkpoints", "verify", "demo@2")
	if r.status != fault.Corrupt.ExitCode() || r.stderr != "fermata: verify checkpoint demo@2: damaged objects: 2, first pack 1c\n" {
		t.Errorf("status %d, stderr %q", r.status, r.stderr)
	}
	golden(t, "checkpoints-verify-damaged.table", r.stdout)
}

func TestRequests_CarryTheFlags(t *testing.T) {
	for _, c := range []struct {
		args string
		want proto.Message
	}{
		{"checkpoint demo --label x --discard-channels", &api.CheckpointRequest{Cluster: "demo", Label: "x", DiscardChannels: true}},
		{"checkpoint demo --cut barrier", &api.CheckpointRequest{Cluster: "demo", Cut: api.Cut_CUT_BARRIER.Enum()}},
		{"checkpoint demo --cut coloured", &api.CheckpointRequest{Cluster: "demo", Cut: api.Cut_CUT_COLOURED.Enum()}},
		{"checkpoint demo --cut auto", &api.CheckpointRequest{Cluster: "demo"}},
		{"checkpoint demo --mode live --audit", &api.CheckpointRequest{Cluster: "demo", Mode: api.CaptureMode_CAPTURE_MODE_LIVE, Audit: true}},
		{"checkpoint demo --mode stop --full", &api.CheckpointRequest{Cluster: "demo", Mode: api.CaptureMode_CAPTURE_MODE_STOP, Full: true}},
		{"cluster start demo --on a=n1,b=n2", &api.StartClusterRequest{Name: "demo", On: map[string]string{"a": "n1", "b": "n2"}}},
		{"restart demo", &api.RestartRequest{Cluster: "demo", From: "latest"}},
		{"restart demo --from 3 --on n3,n4 --on a=n3 --on n5 --dry-run",
			&api.RestartRequest{Cluster: "demo", From: "3", On: map[string]string{"a": "n3"}, Nodes: []string{"n3", "n4", "n5"}, DryRun: true}},
		{"rollback demo --from demo@2", &api.RestartRequest{Cluster: "demo", From: "demo@2", Rollback: true}},
		{"cluster console demo a --follow --offset 7", &api.ConsoleRequest{Cluster: "demo", Guest: "a", Offset: 7, Follow: true}},
	} {
		server := operatortest.New(t)
		r := fermata(t, server, strings.Fields(c.args)...)
		if r.status != 0 {
			t.Errorf("%s: status %d, stderr %q", c.args, r.status, r.stderr)
			continue
		}
		asked := server.Requests()
		if diff := cmp.Diff(c.want, asked[len(asked)-1], protocmp.Transform()); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.args, diff)
		}
		if warned := strings.Contains(r.stderr, "warning"); warned != strings.Contains(c.args, "discard") {
			t.Errorf("%s: stderr %q", c.args, r.stderr)
		}
	}
}

func TestConsole_PrintsWhatTheGuestPrinted(t *testing.T) {
	if got := succeeds(t, operatortest.New(t), "cluster", "console", "demo", "a"); got != "booting\r\nready\r\n" {
		t.Errorf("got %q", got)
	}
}

func TestCompletion_AsksTheCoordinator(t *testing.T) {
	server := operatortest.New(t)
	for args, want := range map[string]string{
		"cluster show ":           "demo\nother\n",
		"cluster show d":          "demo\n",
		"cluster console demo ":   "a\nb\n",
		"checkpoints show demo@1": "demo@1\ndemo@10\n",
		"restart other --from ":   "latest\nother@9\n",
		"restart demo --on a=":    "a=node1\na=node2\n",
		"node show ":              "node1\nnode2\n",
	} {
		r := fermata(t, server, append([]string{"__completeNoDesc"}, strings.Split(args, " ")...)...)
		got, _, _ := strings.Cut(r.stdout, ":")
		if got != want {
			t.Errorf("complete %q: %q, want %q", args, got, want)
		}
	}
}

func TestCompletion_WithoutCoordinatorIsQuiet(t *testing.T) {
	r := fermata(t, nil, "--coordinator", "127.0.0.1:1", "--plaintext", "__completeNoDesc", "cluster", "show", "")
	if got, _, _ := strings.Cut(r.stdout, ":"); r.status != 0 || got != "" {
		t.Errorf("status %d, suggests %q", r.status, got)
	}
}

// TestHelp_IsComplete: every command says what it does, and every command that
// does something shows how.
func TestHelp_IsComplete(t *testing.T) {
	root := newRootCommand(&app.Env{Getenv: os.Getenv})
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s: no summary", c.CommandPath())
		}
		generated := c.Name() == "help" || c.Name() == "completion" || c.Parent() != nil && c.Parent().Name() == "completion"
		if !c.HasSubCommands() && !generated && !c.Hidden && !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s: no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
	for _, args := range [][]string{{"--help"}, {"help", "restart"}, {"cluster", "--help"}, {"checkpoint", "-h"}} {
		if got := succeeds(t, nil, args...); !strings.Contains(got, "Usage:") {
			t.Errorf("%v: %q", args, got)
		}
	}
}

func TestVersion(t *testing.T) {
	var doc map[string]any
	if err := json.Unmarshal([]byte(succeeds(t, nil, "version", "-o", "json")), &doc); err != nil {
		t.Fatal(err)
	}
	if doc["version"] == "" || !strings.HasPrefix(doc["go"].(string), "go") {
		t.Errorf("%v", doc)
	}
}

const specText = `name: pair
networks:
  - name: lan
guests:
  - name: a
    memory: 64MiB
    kernel: vmlinuz
    nics:
      - network: lan
`

func TestCreate_SendsACompleteSpecification(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pair.yaml")
	if err := os.WriteFile(file, []byte(specText), 0o600); err != nil {
		t.Fatal(err)
	}
	server := operatortest.New(t)
	succeeds(t, server, "cluster", "create", "-f", file)
	sent := server.Requests()[0].(*api.CreateClusterRequest).GetSpecYaml()
	if !bytes.Contains(sent, []byte("kernel: "+dir+"/vmlinuz\n")) {
		t.Errorf("path not resolved against the file:\n%s", sent)
	}
}

func TestCreate_TellsEveryProblemWithItsLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bad.yaml")
	bad := strings.Replace(strings.Replace(specText, "network: lan", "network: wan", 1), "64MiB", "much", 1)
	if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	server := operatortest.New(t)
	r := fermata(t, server, "cluster", "create", "-f", file)
	if r.status != 2 || !strings.Contains(r.stderr, file+":6: ") || !strings.Contains(r.stderr, file+":9: ") ||
		!strings.HasSuffix(r.stderr, ": 2 problems\n") {
		t.Errorf("status %d, stderr:\n%s", r.status, r.stderr)
	}
	if len(server.Requests()) > 0 {
		t.Error("a specification with problems was sent")
	}
}
