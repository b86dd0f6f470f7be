package guests

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestCluster_Cmdline(t *testing.T) {
	for name, c := range map[string]struct {
		cluster Cluster
		want    string
	}{
		"idle": {Cluster{Count: 1},
			"fermata.index=1 fermata.count=1 fermata.net=10.77.0.0/24 fermata.role=idle fermata.tick=1000"},
		"everything": {Cluster{Count: 4, Work: RunMPI | RunCanary, MPI: MPI{Side: 64, Iterations: 10, Every: 5},
			Canary: Canary{Rate: 300, SizeBytes: 100, SecondNIC: true, Length: 3 * time.Second},
			Net:    netip.MustParsePrefix("10.1.2.0/24"), Tick: 100 * time.Millisecond, PowerOff: true},
			"fermata.index=1 fermata.count=4 fermata.net=10.1.2.0/24 fermata.role=mpi+canary fermata.tick=100" +
				" fermata.mpi=64,10,5 fermata.canary=300,100,eth1,3,udp fermata.end=poweroff"},
		"dirty": {Cluster{Count: 1, Work: RunDirty, Writer: Writer{MiB: 64, BallastMiB: 100, Rate: 2.5, Length: time.Minute, Every: 50 * time.Millisecond}},
			"fermata.index=1 fermata.count=1 fermata.net=10.77.0.0/24 fermata.role=dirty fermata.tick=1000 fermata.dirty=64,2.5,1,100,60,50"},
		"dirty by default": {Cluster{Count: 2, Work: RunCanary | RunDirty},
			"fermata.index=1 fermata.count=2 fermata.net=10.77.0.0/24 fermata.role=canary+dirty fermata.tick=1000" +
				" fermata.canary=100,200,eth0,0,udp fermata.dirty=16,0,1,0,0,1000"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.cluster.Validate(); err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimPrefix(c.cluster.Cmdline(1), Console+" "); got != c.want {
				t.Errorf("Cmdline\n got %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestCluster_ValidateReportsAll(t *testing.T) {
	err := Cluster{Count: 99, MPI: MPI{Side: 1}, Canary: Canary{Rate: 1, SizeBytes: 9000, Length: time.Millisecond},
		Writer: Writer{Rate: -1, Length: 1, Every: 1},
		Net:    netip.MustParsePrefix("10.0.0.0/8"), Tick: 1}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, word := range []string{"count", "mpi", "canary: rate", "canary: length", "writer: 0 and 0 MiB", "writer: length", "writer: 1ns", "net", "tick"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("no complaint on %s in %q", word, err)
		}
	}
	if err := (Cluster{Count: 1, Work: RunCanary}).Validate(); err == nil {
		t.Error("accepted a canary with nobody to sing to")
	}
}

func TestCluster_Identity(t *testing.T) {
	var c Cluster
	if got := c.Address(3).String(); got != "10.77.0.13" {
		t.Errorf("address %s", got)
	}
	if MAC(1, 0).String() == MAC(1, 1).String() || MAC(1, 0).String() == MAC(2, 0).String() {
		t.Error("hardware addresses are not distinct")
	}
	if MAC(1, 0)[0]&1 != 0 {
		t.Error("hardware address is a multicast address")
	}
}
