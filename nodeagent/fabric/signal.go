package fabric

// signal wakes everybody who waits for a change of something.
//
// Concurrency: guarded by the mutex of what changes. Take the channel under
// the mutex, wait without it, look again under it.
type signal struct{ ch chan struct{} }

// wait returns a channel that the next raise closes.
func (s *signal) wait() <-chan struct{} {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) raise() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
