package round_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"fermata/protocol/round"
)

// env is a cluster in which nothing happens but what the story says.
type env struct {
	t   *testing.T
	log []string

	lead       *round.Lead
	token      round.Token
	stored     *round.Record
	repository string // up, silent (loses the request), deaf (loses the answer), full
	outcomes   map[round.Epoch]round.Outcome

	names []round.NodeID
	nodes map[round.NodeID]*scriptNode
	mail  []func() // messages and results of actions, in order
}

type scriptNode struct {
	name    round.NodeID
	cfg     round.MemberConfig
	member  *round.Member // nil: the agent is down
	journal *round.Journal
	guest   string

	lost    string                    // requests, answers, markers: what the network loses
	mishaps map[round.ActionKind]bool // true: fails, false: never ends
	badDisk bool
	actions []round.Action // that wait behind one that never ends
	open    []round.Request
}

func newEnv(t *testing.T) *env {
	return &env{t: t, repository: "up", outcomes: make(map[round.Epoch]round.Outcome), nodes: make(map[round.NodeID]*scriptNode)}
}

func (e *env) logf(format string, args ...any) { e.log = append(e.log, fmt.Sprintf(format, args...)) }

// run carries out one command:
//
//	nodes NAME... [budget=TICKS] [silence=TICKS]
//	begin epoch=N [token=N] [cut=coloured [skew=TICKS]]    a Lead begins a round, else with a barrier
//	recover [token=N]          a new Lead takes over what is stored
//	stabilize                  let everything happen that needs no tick
//	tick lead|NODE N           and let happen what comes of it
//	network NODE ok|requests|answers|markers    what of the node is lost
//	repository up|silent|deaf|full
//	disk NODE ok|bad           whether its journal can be written
//	action NODE KIND hangs|fails|works
//	crash lead|NODE, restart NODE, cancel, fence
//	break NODE                 a link of the node breaks
//	send CALL epoch=N token=N to=NODE [outcome=O]    a stray request
//	status
func (e *env) run(words []string) string {
	e.log = nil
	args := make(map[string]string)
	var plain []string
	for _, w := range words[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			args[k] = v
		} else {
			plain = append(plain, w)
		}
	}
	e.command(words[0], plain, args)
	if len(e.log) == 0 {
		return "ok\n"
	}
	return strings.Join(e.log, "\n") + "\n"
}

func (e *env) command(name string, plain []string, args map[string]string) {
	switch name {
	case "nodes":
		for _, p := range plain {
			id := round.NodeID(p)
			n := &scriptNode{name: id, guest: "runs", lost: "ok", mishaps: make(map[round.ActionKind]bool), cfg: round.MemberConfig{
				Cluster: "c", Node: id, Tick: time.Second, SilenceTicks: e.number(args, "silence", 0)}}
			m, err := round.NewMember(n.cfg)
			e.must(err)
			n.member = m
			e.names, e.nodes[id] = append(e.names, id), n
		}
	case "begin":
		e.token = round.Token(e.number(args, "token", 1))
		l, err := round.NewLead(round.LeadConfig{
			Round: round.ID{Cluster: "c", Epoch: round.Epoch(e.number(args, "epoch", 1))}, Token: e.token, Members: e.names,
			Options: e.options(args), Budgets: scriptBudgets,
		})
		e.must(err)
		e.lead = l
		l.Begin()
		e.pumpLead()
	case "recover":
		e.token = round.Token(e.number(args, "token", 2))
		l, err := round.RecoverLead(*e.stored, e.token, scriptBudgets)
		e.must(err)
		e.lead = l
		e.pumpLead()
	case "cancel":
		e.lead.Cancel("cancelled")
		e.pumpLead()
	case "fence":
		e.lead.Fenced()
		e.pumpLead()
	case "repository":
		e.repository = plain[0]
	case "tick":
		e.tick(plain[0], e.atoi(plain[1]))
	case "stabilize":
		e.stabilize()
	case "send":
		e.stray(plain[0], args)
	case "status":
		e.status()
	default:
		e.nodeCommand(name, plain)
	}
}

func (e *env) options(args map[string]string) round.Options {
	o := round.Options{
		PauseBudget: time.Duration(e.number(args, "budget", 5)) * time.Second,
		Cut:         round.CutBarrier, SkewBudget: time.Duration(e.number(args, "skew", 2)) * time.Second,
	}
	if text, ok := args["cut"]; ok {
		var err error
		o.Cut, err = round.ParseCut(text)
		e.must(err)
	}
	return o
}

var scriptBudgets = round.Budgets{Prepare: 10, Cut: 10, Persist: 10, Decide: 10, Finish: 10}

func (e *env) nodeCommand(name string, plain []string) {
	if name == "crash" && plain[0] == "lead" {
		e.lead = nil
		return
	}
	n := e.nodes[round.NodeID(plain[0])]
	if n == nil {
		e.t.Fatalf("%s %v: no such command or node", name, plain)
	}
	switch name {
	case "crash":
		n.member, n.actions, n.open = nil, nil, nil
	case "restart":
		m, err := round.NewMember(n.cfg)
		if n.journal != nil {
			m, err = round.RecoverMember(n.cfg, *n.journal)
		}
		e.must(err)
		n.member = m
		e.pump(n)
	case "network":
		n.lost = plain[1]
	case "disk":
		n.badDisk = plain[1] == "bad"
	case "break":
		n.member.StepFailed(n.member.Epoch(), round.StepCloseChannels, "link lost")
		e.pump(n)
	case "action":
		kind := actionKind(e.t, plain[1])
		delete(n.mishaps, kind)
		if plain[2] != "works" {
			n.mishaps[kind] = plain[2] == "fails"
			return
		}
		waiting := n.actions
		n.actions = nil
		e.act(n, waiting)
	default:
		e.t.Fatalf("no such command %q", name)
	}
}

func actionKind(t *testing.T, name string) round.ActionKind {
	for k := round.PrepareGuests; k <= round.ForgetImage; k++ {
		if k.String() == name {
			return k
		}
	}
	t.Fatalf("no such action %q", name)
	return round.ActionNone
}

func (e *env) tick(who string, count int) {
	for range count {
		if who == "lead" {
			e.lead.Tick()
			e.pumpLead()
		} else {
			n := e.nodes[round.NodeID(who)]
			n.member.Tick()
			e.pump(n)
		}
		e.stabilize()
	}
}

func (e *env) stabilize() {
	for len(e.mail) > 0 {
		next := e.mail[0]
		e.mail = e.mail[1:]
		next()
	}
}

func (e *env) post(do func()) { e.mail = append(e.mail, do) }

// stray delivers a request that no Lead of the story has sent.
func (e *env) stray(call string, args map[string]string) {
	req := round.Request{
		Round: round.ID{Cluster: "c", Epoch: round.Epoch(e.number(args, "epoch", 1))},
		Token: round.Token(e.number(args, "token", 1)), To: round.NodeID(args["to"]),
		Members: e.names, Options: e.options(args),
	}
	for c := round.CallPrepare; c <= round.CallFinish; c++ {
		if c.String() == call {
			req.Call = c
		}
	}
	if o, ok := args["outcome"]; ok {
		e.must(req.Outcome.UnmarshalText([]byte(o)))
	}
	n := e.nodes[req.To]
	if err := n.member.Step(req); err != nil {
		e.logf("%s refuses: %v", n.name, err)
	} else {
		n.open = append(n.open, req)
	}
	e.pump(n)
	e.stabilize()
}

func (e *env) status() {
	if e.lead != nil {
		e.logf("lead: %s", e.lead.Phase())
	}
	for _, id := range e.names {
		n := e.nodes[id]
		if n.member == nil {
			e.logf("%s: down, guest %s", id, n.guest)
			continue
		}
		line := fmt.Sprintf("%s: %s in epoch %d, guest %s", id, n.member.Phase(), n.member.Epoch(), n.guest)
		if r := n.member.Reason(); r != "" {
			line += ", " + r
		}
		e.log = append(e.log, line)
	}
	var committed []string
	for epoch, o := range e.outcomes {
		committed = append(committed, fmt.Sprintf("%d %s", epoch, o))
	}
	slices.Sort(committed)
	e.logf("repository: [%s]", strings.Join(committed, " "))
}

func (e *env) number(args map[string]string, key string, otherwise int) int {
	if v, ok := args[key]; ok {
		return e.atoi(v)
	}
	return otherwise
}

func (e *env) atoi(s string) int {
	n, err := strconv.Atoi(s)
	e.must(err)
	return n
}

func (e *env) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// refusal turns an error of Step into the result a driver makes of it.
func refusal(req round.Request, err error) round.Reply {
	r := round.Reply{Call: req.Call, Round: req.Round, From: req.To, Result: round.ResultFailed}
	for _, known := range []error{round.ErrFenced, round.ErrStaleEpoch, round.ErrOutOfOrder, round.ErrContradiction, round.ErrNotMember} {
		if errors.Is(err, known) {
			r.Reason = known.Error()
		}
	}
	if errors.Is(err, round.ErrBusy) {
		r.Result, r.Reason = round.ResultUnanswered, ""
	}
	return r
}
