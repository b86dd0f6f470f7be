package fabric

import (
	"encoding/binary"
	"testing"
	"time"
)

// madeUp is an address that no NIC has.
func madeUp(i int) macAddress {
	a := macAddress{2, 9}
	binary.BigEndian.PutUint32(a[2:], uint32(i))
	return a
}

// Who makes up an address a frame takes bounded memory, and pushes out nothing that is
// known of others.
func TestStations_FloodOfAddressesHurtsOnlyItsSender(t *testing.T) {
	now := time.Now()
	for name, flood := range map[string]station{
		"nic": {port: &Port{}}, "uplink": {outside: true}, "node": {node: "n2"},
	} {
		t.Run(name, func(t *testing.T) {
			table := newStations()
			here, nic, nested := station{port: &Port{}}, macAddress{2, 1}, macAddress{2, 2}
			table.bind(nic, here)
			table.learn(nested, here, now)
			for i := range 2 * flood.room() {
				table.learn(madeUp(i), flood, now)
			}
			if len(table.learnt) != flood.room()+1 || table.behind[flood].Len() != flood.room() {
				t.Errorf("%d addresses, %d of them behind the sender, limit %d", len(table.learnt), table.behind[flood].Len(), flood.room())
			}
			for _, addr := range []macAddress{nic, nested} {
				if at, known := table.lookup(addr, now); !known || at != here {
					t.Errorf("address %x of another station is forgotten", addr)
				}
			}
		})
	}
}

func TestStations_EvictsTheAddressThatWasSilentForLongest(t *testing.T) {
	now := time.Now()
	table, here := newStations(), station{port: &Port{}}
	for i := range here.room() {
		table.learn(madeUp(i), here, now)
	}
	table.learn(madeUp(0), here, now) // speaks again
	table.learn(madeUp(here.room()), here, now)
	if _, known := table.lookup(madeUp(0), now); !known {
		t.Error("an address that has just spoken was evicted")
	}
	if _, known := table.lookup(madeUp(1), now); known {
		t.Error("the address that was silent for longest is still there")
	}
}

func TestStations_LearntAddressesAgeAndMove_BoundOnesDoNot(t *testing.T) {
	now := time.Now()
	table := newStations()
	a, b := station{port: &Port{}}, station{node: "n2"}
	nic, nested := macAddress{2, 1}, macAddress{2, 2}
	table.bind(nic, a)
	if !table.learn(nic, a, now) || table.learn(nic, b, now) {
		t.Error("an address is the claim of who it is bound to, and of nobody else")
	}
	table.learn(nested, a, now)
	if !table.learn(nested, b, now) { // a machine inside a guest has moved to another one
		t.Error("a learnt address may not move")
	}
	if at, known := table.lookup(nested, now); !known || at != b {
		t.Error("a learnt address is not where it was seen last")
	}
	late := now.Add(stationAge)
	if _, known := table.lookup(nested, late); known {
		t.Error("a learnt address does not age")
	}
	if at, known := table.lookup(nic, late); !known || at != a {
		t.Error("a bound address aged or moved")
	}
	table.drop(a)
	table.drop(b)
	if len(table.bound)+len(table.learnt)+len(table.behind) != 0 {
		t.Errorf("left of stations that are gone: %d bound, %d learnt", len(table.bound), len(table.learnt))
	}
}
