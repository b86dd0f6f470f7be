package etcdstore

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protojson"

	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// recordVersion is the form of every JSON record here. A reader refuses
// another one: an older coordinator beside a newer one must not rewrite what it
// does not understand.
const recordVersion = 1

type clusterRecord struct {
	Version     int               `json:"version"`
	CreatedNs   int64             `json:"created_unix_ns"`
	State       string            `json:"state"`
	Reason      string            `json:"reason,omitempty"`
	Incarnation uint64            `json:"incarnation"`
	Assignments map[string]string `json:"assignments,omitempty"`
	Life        uint64            `json:"life,omitempty"`
}

type operationRecord struct {
	Version   int    `json:"version"`
	ID        string `json:"id"`
	Kind      string `json:"kind"`
	Epoch     uint64 `json:"epoch,omitempty"`
	Phase     []byte `json:"phase,omitempty"`
	StartedNs int64  `json:"started_unix_ns"`
}

type nodeRecord struct {
	Version int             `json:"version"`
	Info    json.RawMessage `json:"info"`
}

func encode(record any) (string, error) {
	data, err := json.Marshal(record)
	if err != nil {
		return "", fmt.Errorf("encode record: %w", err)
	}
	return string(data), nil
}

// decode reads a JSON record after a look at its version.
func decode(kv *mvccpb.KeyValue, record any) error {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(kv.Value, &head); err != nil {
		return store.Corrupt(string(kv.Key), err)
	}
	if head.Version != recordVersion {
		return fault.New(fault.Mismatch, "read %s: record version %d, this program knows %d", kv.Key, head.Version, recordVersion)
	}
	if err := json.Unmarshal(kv.Value, record); err != nil {
		return store.Corrupt(string(kv.Key), err)
	}
	return nil
}

func encodeCluster(c store.Cluster) (string, error) {
	return encode(clusterRecord{
		Version:     recordVersion,
		CreatedNs:   unixNs(c.Created),
		State:       c.State.String(),
		Reason:      c.Reason,
		Incarnation: c.Incarnation,
		Assignments: c.Assignments,
		Life:        c.Life,
	})
}

// decodeCluster makes a cluster out of its three records; spec and epoch may
// be absent.
func decodeCluster(name string, kv, spec, epoch *mvccpb.KeyValue) (store.Cluster, error) {
	var r clusterRecord
	if err := decode(kv, &r); err != nil {
		return store.Cluster{}, err
	}
	state, known := api.ClusterState_value[r.State]
	if !known {
		return store.Cluster{}, store.Corrupt(string(kv.Key), fmt.Errorf("state %q", r.State))
	}
	c := store.Cluster{
		Name:        name,
		Created:     fromUnixNs(r.CreatedNs),
		State:       api.ClusterState(state),
		Reason:      r.Reason,
		Incarnation: r.Incarnation,
		Assignments: r.Assignments,
		Life:        r.Life,
	}
	if spec != nil {
		c.Spec = spec.Value
	}
	var err error
	c.Epoch, err = decodeEpoch(epoch)
	return c, err
}

// decodeEpoch reads the last epoch used; zero when none was.
func decodeEpoch(kv *mvccpb.KeyValue) (uint64, error) {
	if kv == nil {
		return 0, nil
	}
	n, err := strconv.ParseUint(string(kv.Value), 10, 64)
	if err != nil {
		return 0, store.Corrupt(string(kv.Key), err)
	}
	return n, nil
}

func encodeOperation(op store.Operation) (string, error) {
	return encode(operationRecord{
		Version:   recordVersion,
		ID:        op.ID,
		Kind:      string(op.Kind),
		Epoch:     op.Epoch,
		Phase:     op.Phase,
		StartedNs: unixNs(op.Started),
	})
}

func decodeOperation(cluster string, kv *mvccpb.KeyValue) (store.Operation, error) {
	var r operationRecord
	if err := decode(kv, &r); err != nil {
		return store.Operation{}, err
	}
	return store.Operation{
		ID:      r.ID,
		Kind:    store.Kind(r.Kind),
		Cluster: cluster,
		Epoch:   r.Epoch,
		Phase:   r.Phase,
		Started: fromUnixNs(r.StartedNs),
	}, nil
}

func encodeNode(info *api.NodeInfo) (string, error) {
	data, err := protojson.Marshal(info)
	if err != nil {
		return "", fmt.Errorf("encode node %s: %w", info.GetName(), err)
	}
	return encode(nodeRecord{Version: recordVersion, Info: data})
}

func decodeNode(kv *mvccpb.KeyValue) (*api.NodeInfo, error) {
	var r nodeRecord
	if err := decode(kv, &r); err != nil {
		return nil, err
	}
	info := &api.NodeInfo{}
	// A field that is new in a newer program is no reason to lose the node.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(r.Info, info); err != nil {
		return nil, store.Corrupt(string(kv.Key), err)
	}
	return info, nil
}

// unixNs and fromUnixNs keep the zero time, whose nanoseconds do not fit.
func unixNs(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromUnixNs(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}
