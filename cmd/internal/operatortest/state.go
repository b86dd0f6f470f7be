package operatortest

import (
	"time"

	"fermata/protocol/api"
)

// begun is the instant at which the fixed state begins, in nanoseconds.
const begun = 1_700_000_000_000_000_000

// Clusters are two clusters, in no order: one runs, one is broken.
func Clusters() []*api.Cluster {
	return []*api.Cluster{
		{
			Name: "other", State: api.ClusterState_CLUSTER_STATE_BROKEN, Epoch: 9, CreatedUnixNs: begun,
			Reason: "start: node2 does not answer",
		},
		{
			Name: "demo", State: api.ClusterState_CLUSTER_STATE_DEGRADED, Epoch: 2, Reason: "guest b on node node2 has ended (it powered itself off)", CreatedUnixNs: begun + 1_500_000_000,
			SpecYaml: []byte("name: demo\nguests:\n  - name: a\n"),
			Guests: []*api.GuestStatus{
				{
					Name: "b", Cluster: "demo", Node: "node2", State: api.GuestState_GUEST_STATE_DEAD, MemoryBytes: 256 << 20, Vcpus: 2, Pid: 4243,
					Epoch: 2, Reason: "it powered itself off", EndedUnixNs: begun + 6_000_000_000,
				},
				{
					Name: "a", Cluster: "demo", Node: "node1", State: api.GuestState_GUEST_STATE_RUNNING, MemoryBytes: 512 << 20, Vcpus: 1, Pid: 4242, Epoch: 2,
					Nics: []*api.NICStatus{
						{Name: "net0", Network: "lan", Mac: "52:54:00:00:00:01", FramesReceived: 1200, FramesSent: 1100, FramesHeld: 2, FramesRecorded: 3,
							FramesDropped: 4, Drops: map[string]uint64{"runt": 1, "giant": 0, "stalled": 3}},
						{Name: "net1", Network: "theirs", Mac: "52:54:00:00:00:02", Bridge: "office", FramesReceived: 8, FramesSent: 9},
					},
				},
			},
			Leftovers: []*api.GuestStatus{{Name: "a", Cluster: "demo", Node: "node3", State: api.GuestState_GUEST_STATE_RUNNING, Epoch: 1}},
			Uplinks: []*api.UplinkStatus{{
				Cluster: "demo", Node: "node1", FramesReceived: 70, FramesSent: 60, FramesWaiting: 5, FramesDropped: 1,
				Uplink: &api.Uplink{Network: "lan", Bridge: "office", Outside: api.Outside_OUTSIDE_HOLD_UNTIL_DURABLE},
			}},
		},
	}
}

// Checkpoints are those of both clusters, in no order.
func Checkpoints() []*api.Checkpoint {
	return []*api.Checkpoint{
		{
			Id: "demo@1", Cluster: "demo", Epoch: 1, Label: "before upgrade", CreatedUnixNs: begun + 2_000_000_000,
			SkewUs: 1_250, ResumedUs: 8_400, DurableUs: 1_840_000,
			RawBytes: 768 << 20, NonZeroBytes: 200 << 20, UniqueBytes: 150 << 20, NewBytes: 40 << 20, StoredBytes: 60 << 20,
			FramesRecorded: 3, ChannelsRecorded: true, QemuVersion: "7.2.22", Networks: []string{"lan"}, Bypassed: []string{"theirs"}, OffFabric: []string{"b"},
			Guests: []*api.GuestReport{
				{
					Name: "b", Node: "node2", PauseUs: 4_100, SilentUs: 4_700, EarlyUs: 1_200, WaitUs: 300, GateUs: 300, StopUs: 500, DevicesUs: 2_100, MemoryUs: 900, ChannelsUs: 400, ResumeUs: 200,
					Mode: "stop", ModeReason: "guest memory cannot be tracked: device net0 (vhost-user-net-pci): another process writes guest memory",
					StoppedUnixNs: begun + 2_001_000_000, RawBytes: 256 << 20, NonZeroBytes: 60 << 20, UndrainedNics: 1,
				},
				{
					Name: "a", Node: "node1", PauseUs: 3_550, SilentUs: 3_870, WaitUs: 10, GateUs: 10, DrainUs: 300, StopUs: 480, DevicesUs: 2_000, ProtectUs: 320, ChannelsUs: 550, ResumeUs: 200,
					Mode: "live", ArmUs: 9_000, WriteFaults: 120, LongestWaitUs: 90, CopiedInPauseBytes: 65_536, PeakBufferBytes: 1 << 20, TakenBytes: 24 << 20,
					StoppedUnixNs: begun + 2_000_000_000, RawBytes: 512 << 20, NonZeroBytes: 140 << 20, FramesRecorded: 3, ConfidentialBytes: 64 << 10,
				},
			},
		},
		{Id: "other@9", Cluster: "other", Epoch: 9, CreatedUnixNs: begun, Damage: "manifest: digest differs"},
		{Id: "demo@10", Cluster: "demo", Epoch: 10, CreatedUnixNs: begun + 4_000_000_000},
		{Id: "demo@2", Cluster: "demo", Epoch: 2, CreatedUnixNs: begun + 3_000_000_000, RawBytes: 768 << 20, ChannelsRecorded: true},
	}
}

// Nodes are two nodes, in no order: one answers, one is lost.
func Nodes() []*api.NodeInfo {
	return []*api.NodeInfo{
		{
			Name: "node2", Address: "10.0.0.2:7001", FabricAddress: "10.0.0.2:7002", MemoryBytes: 16 << 30, Cpus: 8,
			QemuVersion: "10.0.2", Kernel: "6.1.0", Kvm: true, Version: "v1.0.0", Incarnation: "d4", LastSeenUnixNs: begun,
			CertificateNotAfterUnixNs: begun,
		},
		{
			Name: "node1", Address: "10.0.0.1:7001", FabricAddress: "10.0.0.1:7002", MemoryBytes: 16 << 30, MemoryFreeBytes: 12 << 30, Cpus: 4,
			QemuVersion: "7.2.22", Kernel: "6.18.0", Version: "v1.0.0", Incarnation: "c3", LastSeenUnixNs: begun + 5_000_000_000, Alive: true,
			CertificateNotAfterUnixNs: begun + 100*365*24*int64(time.Hour),
			Guests: []*api.GuestStatus{
				{Name: "a", Cluster: "demo", Node: "node1", State: api.GuestState_GUEST_STATE_RUNNING, MemoryBytes: 512 << 20, Vcpus: 1, Pid: 4242},
			},
		},
	}
}
