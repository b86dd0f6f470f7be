package etcdstore_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator/etcdembed/etcdtest"
	"fermata/coordinator/store/etcdstore"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

func revision(t *testing.T, client *clientv3.Client) int64 {
	t.Helper()
	resp, err := client.Get(t.Context(), "any")
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

// clock is a time that a test moves.
type clock struct{ now time.Time }

func (c *clock) pass(d time.Duration) { c.now = c.now.Add(d) }

func openAt(t *testing.T, client *clientv3.Client, cfg etcdstore.Config) (*etcdstore.Store, *clock) {
	t.Helper()
	c := &clock{time.Unix(1700000000, 0)}
	cfg.Client, cfg.Now = client, func() time.Time { return c.now }
	s, err := etcdstore.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// An idle installation adds no revision to etcd.
func TestPutNode_HeartbeatsAddNoRevision(t *testing.T) {
	p := etcdtest.StartProcess(t)
	client := etcdtest.Dial(t, p.Endpoint)
	s, now := openAt(t, client, etcdstore.Config{})
	f := elect(t, client, "", "lease")
	ctx := t.Context()
	put := func(frames uint64) {
		t.Helper()
		for i := range 3 {
			info := &api.NodeInfo{
				Name: fmt.Sprintf("n%d", i), Incarnation: "x",
				Guests: []*api.GuestStatus{{Name: "g", State: api.GuestState_GUEST_STATE_RUNNING, Nics: []*api.NICStatus{{FramesSent: frames}}}},
			}
			if err := s.PutNode(ctx, f, info, 10*time.Second); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(0)
	before := revision(t, client)
	for beat := range uint64(100) {
		now.pass(3 * time.Second)
		put(beat)
		if err := s.Maintain(ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	if got := revision(t, client); got != before {
		t.Errorf("300 heartbeats added %d revisions, want none", got-before)
	}
	// What a successor reads of a node that has died in the meantime is not old.
	now.pass(10 * time.Minute)
	put(100)
	if got := revision(t, client) - before; got != 3 {
		t.Errorf("%d revisions after more than ten minutes, want one a node", got)
	}
	successor, _ := openAt(t, client, etcdstore.Config{})
	all, err := successor.Nodes(ctx)
	if err != nil || len(all) != 3 || all[0].GetLastSeenUnixNs() != now.now.UnixNano() {
		t.Errorf("a successor reads %v, %v; want three nodes last seen at %d", all, err, now.now.UnixNano())
	}
}

// A leader writes down what it remembers of a node that is lost.
func TestMaintain_RecordsWhenALostNodeWasLastSeen(t *testing.T) {
	client := etcdtest.Client(t)
	s, now := openAt(t, client, etcdstore.Config{})
	f := elect(t, client, "", "lease")
	ctx := t.Context()
	for range 3 {
		now.pass(3 * time.Second)
		if err := s.PutNode(ctx, f, &api.NodeInfo{Name: "n1"}, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	seen := now.now.UnixNano()
	now.pass(11 * time.Second)
	if err := s.Maintain(ctx, f); err != nil {
		t.Fatal(err)
	}
	all, err := open(t, client, "").Nodes(ctx)
	if err != nil || len(all) != 1 || all[0].GetLastSeenUnixNs() != seen {
		t.Errorf("a successor reads %v, %v; want n1 last seen at %d", all, err, seen)
	}
	before := revision(t, client)
	if err := s.Maintain(ctx, f); err != nil {
		t.Fatal(err)
	}
	if got := revision(t, client); got != before {
		t.Errorf("recorded again: %d revisions", got-before)
	}
}

func TestMaintain_CompactsWhatIsOld(t *testing.T) {
	p := etcdtest.StartProcess(t)
	client := etcdtest.Dial(t, p.Endpoint)
	s, now := openAt(t, client, etcdstore.Config{CompactAfter: 10 * time.Minute})
	f := elect(t, client, "", "lease")
	ctx := t.Context()
	touch := func() int64 {
		t.Helper()
		if err := s.PutNode(ctx, f, &api.NodeInfo{Name: "n1", Incarnation: fmt.Sprint(now.now)}, time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := s.Maintain(ctx, f); err != nil {
			t.Fatal(err)
		}
		return revision(t, client)
	}
	readable := func(revision int64) bool {
		t.Helper()
		_, err := client.Get(ctx, "any", clientv3.WithRev(revision))
		if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
			t.Fatal(err)
		}
		return err == nil
	}
	first := touch()
	now.pass(6 * time.Minute)
	second := touch()
	if !readable(first) {
		t.Error("revisions six minutes old are compacted")
	}
	now.pass(6 * time.Minute)
	touch()
	if readable(first-1) || !readable(second) {
		t.Errorf("readable: first %v, want false; second %v, want true", readable(first-1), readable(second))
	}
}

// lines is a log.
type lines struct{ strings.Builder }

func (l *lines) logger() hclog.Logger { return hclog.New(&hclog.LoggerOptions{Output: l}) }

func TestMaintain_WarnsThatNobodyCompacts(t *testing.T) {
	client := etcdtest.Client(t)
	var log lines
	s, now := openAt(t, client, etcdstore.Config{Logger: log.logger()})
	f := elect(t, client, "", "lease")
	ctx := t.Context()
	for range 3 {
		if err := s.Maintain(ctx, f); err != nil {
			t.Fatal(err)
		}
		for range 600 {
			if _, err := client.Put(ctx, "any", ""); err != nil {
				t.Fatal(err)
			}
		}
		now.pass(2 * time.Hour)
	}
	if err := s.Maintain(ctx, f); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "nobody compacts etcd"); n != 1 {
		t.Errorf("%d warnings, want one:\n%s", n, log.String())
	}
}

// A full etcd is named with what to do about it.
func TestMaintain_NoSpace(t *testing.T) {
	client := etcdtest.Client(t)
	s := open(t, client, "")
	f := elect(t, client, "", "lease")
	ctx := t.Context()
	id := member(t, client)
	alarm := etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: id, Alarm: etcdserverpb.AlarmType_NOSPACE}
	if _, err := etcdserverpb.NewMaintenanceClient(client.ActiveConnection()).Alarm(ctx, &alarm); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"maintain": s.Maintain(ctx, f),
		"write":    s.CreateCluster(ctx, f, cluster("c")),
		"register": s.PutNode(ctx, f, &api.NodeInfo{Name: "n"}, time.Minute),
	} {
		if fault.ClassOf(err) != fault.NoSpace {
			t.Errorf("%s: %v, want class no-space", what, err)
			continue
		}
		for _, want := range []string{"NOSPACE", client.Endpoints()[0], "defragment"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q lacks %q", what, err, want)
			}
		}
	}
	if _, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: id, Alarm: etcdserverpb.AlarmType_NOSPACE}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Maintain(ctx, f), s.CreateCluster(ctx, f, cluster("c"))); err != nil {
		t.Error(err)
	}
}

func member(t *testing.T, client *clientv3.Client) uint64 {
	t.Helper()
	resp, err := client.MemberList(t.Context())
	if err != nil || len(resp.Members) != 1 {
		t.Fatalf("members: %v, %v", resp, err)
	}
	return resp.Members[0].ID
}

// The errors of an etcd that is away name it.
func TestErrors_NameTheEndpoint(t *testing.T) {
	p := etcdtest.StartProcess(t)
	client := etcdtest.Dial(t, p.Endpoint)
	s, err := etcdstore.New(etcdstore.Config{Client: client, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	f := elect(t, client, "", "lease")
	p.Kill(t)
	_, listErr := s.Clusters(t.Context())
	for what, err := range map[string]error{
		"read": listErr, "write": s.DeleteCluster(t.Context(), f, "c"), "maintain": s.Maintain(t.Context(), f),
	} {
		if err == nil || !strings.Contains(err.Error(), p.Endpoint) || !strings.Contains(err.Error(), "guests keep running") {
			t.Errorf("%s: %v; want the endpoint %s and what becomes of guests", what, err, p.Endpoint)
		}
	}
}
