package fabric

// fifo is a growing ring with access to both ends.
//
// Concurrency: guarded by its owner.
type fifo[T any] struct {
	ring []T
	head int
	n    int
}

// keepRing is the ring that an emptied fifo keeps. A larger one is given back,
// so that one burst does not cost memory for ever.
const keepRing = 1024

func (q *fifo[T]) len() int { return q.n }

// at returns the i-th element, the front being 0.
//
// Preconditions: 0 <= i < len.
func (q *fifo[T]) at(i int) *T { return &q.ring[(q.head+i)%len(q.ring)] }

func (q *fifo[T]) pushBack(v T) {
	q.reserve(1)
	q.n++
	*q.at(q.n - 1) = v
}

// pushFront puts vs before all others, in their order.
func (q *fifo[T]) pushFront(vs []T) {
	if len(vs) == 0 {
		return
	}
	q.reserve(len(vs))
	q.head = (q.head - len(vs) + len(q.ring)) % len(q.ring)
	q.n += len(vs)
	for i, v := range vs {
		*q.at(i) = v
	}
}

// popFront removes the first element.
//
// Preconditions: the fifo is not empty.
func (q *fifo[T]) popFront() T {
	var zero T
	v := *q.at(0)
	*q.at(0) = zero // let the frame be collected
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	if q.n == 0 && len(q.ring) > keepRing {
		q.ring, q.head = nil, 0
	}
	return v
}

// reserve makes room for extra more elements.
func (q *fifo[T]) reserve(extra int) {
	need := q.n + extra
	if need <= len(q.ring) {
		return
	}
	ring := make([]T, max(need, 2*len(q.ring), 16))
	for i := range q.n {
		ring[i] = *q.at(i)
	}
	q.ring, q.head = ring, 0
}
