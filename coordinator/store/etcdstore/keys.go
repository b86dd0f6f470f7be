package etcdstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator/store"
	"fermata/protocol/fault"
)

// keys are the places of records. Names never hold a slash (store.CheckName),
// so one record's key is never a prefix of another kind's.
type keys struct {
	prefix   string
	identity string
	origin   string // the etcd cluster that the identity belongs to
}

func keysBelow(prefix string) keys {
	if prefix == "" {
		prefix = defaultPrefix
	}
	return keys{prefix: prefix, identity: prefix + "/store", origin: prefix + "/etcd"}
}

func (k keys) clusters() string             { return k.prefix + "/clusters/" }
func (k keys) cluster(name string) string   { return k.clusters() + name }
func (k keys) specs() string                { return k.prefix + "/specs/" }
func (k keys) spec(name string) string      { return k.specs() + name }
func (k keys) epochs() string               { return k.prefix + "/epochs/" }
func (k keys) epoch(cluster string) string  { return k.epochs() + cluster }
func (k keys) operations() string           { return k.prefix + "/operations/" }
func (k keys) operation(name string) string { return k.operations() + name }
func (k keys) unsettled() string            { return k.prefix + "/unsettled/" }
func (k keys) aside(name string, epoch uint64) string {
	return fmt.Sprintf("%s%s/%020d", k.unsettled(), name, epoch) // sorts by epoch
}
func (k keys) nodes() string                  { return k.prefix + "/nodes/" }
func (k keys) node(name string) string        { return k.nodes() + name }
func (k keys) living() string                 { return k.prefix + "/alive/" }
func (k keys) alive(name string) string       { return k.living() + name }
func nameIn(prefix string, key []byte) string { return strings.TrimPrefix(string(key), prefix) }

func checkPrefix(prefix string) error {
	if prefix != "" && (!strings.HasPrefix(prefix, "/") || strings.HasSuffix(prefix, "/")) {
		return fmt.Errorf("prefix %q: want a path such as %s", prefix, defaultPrefix)
	}
	return nil
}

// ElectionPrefix is where the leaders of the store below prefix are elected.
func ElectionPrefix(prefix string) string { return keysBelow(prefix).prefix + "/leader" }

// Identity returns the identity of the store below prefix, and gives it one if it is
// new. An etcd that was lost and made anew gets another one, which tells its fences
// from those of the old one although its revisions begin again. So does one that was
// restored from a snapshot as another etcd cluster: the first may come back.
func Identity(ctx context.Context, client *clientv3.Client, prefix string) (uint64, error) {
	k := keysBelow(prefix)
	for range maxAttempts {
		id, done, err := k.identify(ctx, client)
		if err != nil || done {
			return id, err
		}
	}
	return 0, fault.Wrap(fault.Busy, store.ErrConflict, "identity of store")
}

// identify reads the identity, and writes what is missing or of another etcd. done is
// false if somebody else was quicker.
func (k keys) identify(ctx context.Context, client *clientv3.Client) (id uint64, done bool, err error) {
	read, err := client.Txn(ctx).Then(clientv3.OpGet(k.identity), clientv3.OpGet(k.origin)).Commit()
	if err != nil {
		return 0, false, fmt.Errorf("read identity of store: %w", Explain(client.Endpoints(), err))
	}
	here := formatIdentity(read.Header.ClusterId)
	was, wasHere := read.Responses[0].GetResponseRange().GetKvs(), read.Responses[1].GetResponseRange().GetKvs()
	if len(was) == 1 && len(wasHere) == 1 && string(wasHere[0].Value) == here {
		if id, err = strconv.ParseUint(string(was[0].Value), 16, 64); err != nil {
			return 0, false, store.Corrupt(k.identity, err)
		}
		return id, true, nil
	}
	puts := []clientv3.Op{clientv3.OpPut(k.origin, here)}
	// A store of a program that did not note the etcd cluster keeps its identity.
	if len(was) == 0 || len(wasHere) == 1 {
		if id, err = newIdentity(); err != nil {
			return 0, false, err
		}
		puts = append(puts, clientv3.OpPut(k.identity, formatIdentity(id)))
	}
	_, err = client.Txn(ctx).If(unchanged(k.identity, was), unchanged(k.origin, wasHere)).Then(puts...).Commit()
	if err != nil {
		return 0, false, fmt.Errorf("write identity of store: %w", Explain(client.Endpoints(), err))
	}
	return 0, false, nil // read again
}

// unchanged is the condition that a key is as it was read.
func unchanged(key string, was []*mvccpb.KeyValue) clientv3.Cmp {
	var revision int64 // zero: absent
	if len(was) == 1 {
		revision = was[0].ModRevision
	}
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

func newIdentity() (uint64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, fmt.Errorf("draw identity of store: %w", err)
	}
	return binary.LittleEndian.Uint64(b[:]) | 1, nil // zero means none
}

func formatIdentity(id uint64) string { return fmt.Sprintf("%016x", id) }
