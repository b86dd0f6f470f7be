package fabric_test

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy is a stretch of network between two nodes that can break.
type proxy struct {
	lis    net.Listener
	target string

	workers sync.WaitGroup

	mu     sync.Mutex
	open   sync.Cond // on mu: closed gate or end
	conns  map[net.Conn]bool
	resets int
	life   int           // bytes a connection lives for, at most, each way; 0: for ever
	shut   bool          // bytes to the target wait
	lag    time.Duration // of bytes to the target
	ended  bool
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{lis: lis, target: target, conns: make(map[net.Conn]bool)}
	p.open.L = &p.mu
	p.workers.Go(p.accept)
	t.Cleanup(func() {
		_ = lis.Close()
		p.mu.Lock()
		p.ended, p.shut = true, false
		p.open.Broadcast()
		p.mu.Unlock()
		p.reset()
		p.workers.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.lis.Addr().String() }

// reset ends every connection.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// setShut makes bytes to the target wait, or lets them go.
func (p *proxy) setShut(shut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = shut
	p.open.Broadcast()
}

// setLife gives connections a random life of at most n bytes each way.
func (p *proxy) setLife(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.life = n
}

// setLag delays the bytes to the target that come from now on.
func (p *proxy) setLag(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lag = d
}

func (p *proxy) resetCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.resets
}

func (p *proxy) accept() {
	for {
		in, err := p.lis.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		p.mu.Lock()
		if p.ended {
			p.mu.Unlock()
			_, _ = in.Close(), out.Close()
			return
		}
		p.conns[in], p.conns[out] = true, true
		there, back := p.lifetime(), p.lifetime()
		p.mu.Unlock()
		p.workers.Go(func() {
			var both sync.WaitGroup
			both.Go(func() { p.carryGated(out, in, there) })
			both.Go(func() { carry(in, out, back) })
			both.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.conns, in)
			delete(p.conns, out)
			p.resets++
		})
	}
}

// lifetime is in bytes. The caller holds mu.
func (p *proxy) lifetime() int64 {
	if p.life == 0 {
		return 1 << 62
	}
	return int64(1 + rand.IntN(p.life))
}

// carry copies until either side ends or n bytes are through, then ends both.
func carry(dst, src net.Conn, n int64) {
	defer dst.Close()
	defer src.Close()
	_, _ = io.Copy(dst, io.LimitReader(src, n))
}

// piece is what is on its way for some time.
type piece struct {
	due  time.Time
	data []byte
}

// carryGated is carry for bytes to the target, which may be held up.
func (p *proxy) carryGated(dst, src net.Conn, n int64) {
	defer src.Close()
	pieces := make(chan piece, 1024)
	var writer sync.WaitGroup
	defer writer.Wait()
	defer close(pieces)
	writer.Go(func() {
		defer dst.Close()
		defer src.Close()
		for pc := range pieces {
			time.Sleep(time.Until(pc.due)) // the distance; nothing is waited for
			p.mu.Lock()
			for p.shut {
				p.open.Wait()
			}
			p.mu.Unlock()
			if _, err := dst.Write(pc.data); err != nil {
				break
			}
		}
		for range pieces { // so that the reader does not wait for ever
		}
	})
	r := io.LimitReader(src, n)
	for {
		buf := make([]byte, 4096)
		k, err := r.Read(buf)
		p.mu.Lock()
		lag := p.lag
		p.mu.Unlock()
		pieces <- piece{time.Now().Add(lag), buf[:k]}
		if err != nil {
			return
		}
	}
}
