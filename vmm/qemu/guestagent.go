package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"fermata/vmm"
)

// maxAgentLine bounds an answer of a guest, which may say anything.
const maxAgentLine = 64 << 10

// StepClock implements vmm.ClockStepper by QEMU's guest agent: guest-set-time
// (qga/qapi-schema.json of QEMU).
func (m *Machine) StepClock(ctx context.Context) error {
	if err := m.stepClock(ctx); err != nil {
		return fmt.Errorf("step the clock of guest %s: %w", m.Name(), err)
	}
	return nil
}

func (m *Machine) stepClock(ctx context.Context) error {
	if !m.state.Config.GuestAgent {
		return fmt.Errorf("%w: it has no port for a guest agent", vmm.ErrUnsupported)
	}
	conn, err := m.dialPort(ctx, m.state.Config.agentPath())
	if err != nil {
		return err
	}
	defer conn.Close()
	release := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer release()
	a := &agentConn{conn: conn, r: bufio.NewReaderSize(conn, maxAgentLine)}
	err = a.sync()
	if err == nil {
		err = a.call("guest-set-time", map[string]any{"time": time.Now().UnixNano()}, nil)
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("the guest agent does not answer: %w", context.Cause(ctx))
	}
	return err
}

// agentConn speaks the protocol of QEMU's guest agent: JSON, a line each way.
type agentConn struct {
	conn net.Conn
	r    *bufio.Reader
}

// sync drops what an earlier caller may have left on the way, in both directions. The
// byte 0xff cannot be JSON: it makes either parser begin anew.
func (a *agentConn) sync() error {
	if _, err := a.conn.Write([]byte{0xff}); err != nil {
		return err
	}
	id := rand.Int32()
	if err := a.send("guest-sync-delimited", map[string]any{"id": id}); err != nil {
		return err
	}
	for {
		b, err := a.r.ReadByte()
		if err != nil {
			return err
		}
		if b != 0xff {
			continue
		}
		var got int64
		if err := a.answer(&got); err == nil && got == int64(id) {
			return nil
		} else if errors.Is(err, io.EOF) {
			return err
		}
	}
}

func (a *agentConn) call(command string, arguments, into any) error {
	if err := a.send(command, arguments); err != nil {
		return err
	}
	if err := a.answer(into); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

func (a *agentConn) send(command string, arguments any) error {
	b, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		return err
	}
	_, err = a.conn.Write(append(b, '\n'))
	return err
}

func (a *agentConn) answer(into any) error {
	line, err := a.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &reply); err != nil {
		return fmt.Errorf("answer of the guest agent: %w", err)
	}
	if reply.Error != nil {
		return fmt.Errorf("the guest agent says: %s", reply.Error.Desc)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(reply.Return, into)
}
