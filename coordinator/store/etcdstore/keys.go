package etcdstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator/store"
)

// keys are the places of records. Names never hold a slash (store.CheckName),
// so one record's key is never a prefix of another kind's.
type keys struct {
	prefix   string
	identity string
}

func keysBelow(prefix string) keys {
	if prefix == "" {
		prefix = defaultPrefix
	}
	return keys{prefix: prefix, identity: prefix + "/store"}
}

func (k keys) clusters() string               { return k.prefix + "/clusters/" }
func (k keys) cluster(name string) string     { return k.clusters() + name }
func (k keys) specs() string                  { return k.prefix + "/specs/" }
func (k keys) spec(name string) string        { return k.specs() + name }
func (k keys) epochs() string                 { return k.prefix + "/epochs/" }
func (k keys) epoch(cluster string) string    { return k.epochs() + cluster }
func (k keys) operations() string             { return k.prefix + "/operations/" }
func (k keys) operation(name string) string   { return k.operations() + name }
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

// Identity returns the identity of the store below prefix, and gives it one if
// it is new. An etcd that was lost and made anew gets another one, which tells
// its fences from those of the old one although its revisions begin again.
func Identity(ctx context.Context, client *clientv3.Client, prefix string) (uint64, error) {
	id, err := newIdentity()
	if err != nil {
		return 0, err
	}
	key := keysBelow(prefix).identity
	resp, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, formatIdentity(id))).
		Else(clientv3.OpGet(key)).
		Commit()
	if err != nil {
		return 0, fmt.Errorf("read identity of store: %w", Explain(client.Endpoints(), err))
	}
	if resp.Succeeded {
		return id, nil
	}
	kvs := resp.Responses[0].GetResponseRange().GetKvs()
	if len(kvs) != 1 {
		return 0, store.Corrupt(key, fmt.Errorf("%d values", len(kvs)))
	}
	id, err = strconv.ParseUint(string(kvs[0].Value), 16, 64)
	if err != nil {
		return 0, store.Corrupt(key, err)
	}
	return id, nil
}

func newIdentity() (uint64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, fmt.Errorf("draw identity of store: %w", err)
	}
	return binary.LittleEndian.Uint64(b[:]) | 1, nil // zero means none
}

func formatIdentity(id uint64) string { return fmt.Sprintf("%016x", id) }
