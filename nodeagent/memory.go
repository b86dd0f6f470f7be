package nodeagent

import "fmt"

// What an agent needs beside the guests' memory comes out of one number, AgentBytes:
//
//	copies and pre-images of guests' memory   CaptureBytes, by default two thirds
//	frames in its data plane                  half of the rest
//	the index of what need not be stored      half of the rest
//
// Each share is enforced where it is used: a copy that does not fit is stored inside the
// pause, and a guest whose writes have filled the share for pre-images waits; senders of
// frames wait; packs that find no room in the index are not relied on.

// minShare is the least that frames and index get: with less, every checkpoint would store
// what is stored, and guests would wait for each other's frames.
const minShare = 32 << 20

// shareMemory applies the defaults of AgentBytes and CaptureBytes. left is what is
// available beside the guests' memory.
func (c *Config) shareMemory(left int64) {
	if c.AgentBytes == 0 {
		if c.CaptureBytes == 0 {
			c.AgentBytes = max(left/4*3, 3*minShare)
		} else {
			c.AgentBytes = c.CaptureBytes + max(c.CaptureBytes/2, 2*minShare)
		}
	}
	if c.CaptureBytes == 0 {
		c.CaptureBytes = min(c.AgentBytes/3*2, c.AgentBytes-2*minShare)
	}
}

// frameBytes is the data plane's share.
func (c *Config) frameBytes() int64 { return (c.AgentBytes - c.CaptureBytes) / 2 }

// indexBytes is the index's share.
func (c *Config) indexBytes() int64 { return c.AgentBytes - c.CaptureBytes - c.frameBytes() }

// checkMemory reports what cannot be shared out.
func (c *Config) checkMemory() error {
	switch {
	case c.MemoryBytes < 0, c.CaptureBytes < 0, c.AgentBytes < 0:
		return fmt.Errorf("memory_mib, agent_mib, capture_mib: negative")
	case c.AgentBytes-c.CaptureBytes < 2*minShare:
		return fmt.Errorf("agent_mib: %d MiB, of which capture_mib takes %d: at least %d MiB more are needed, for the frames of guests and the index of stored pages",
			c.AgentBytes>>20, c.CaptureBytes>>20, 2*minShare>>20)
	}
	return nil
}
