package qmp

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// FuzzDecode: any line is a message of exactly one shape or ErrProtocol.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		greetingLine,
		`{"QMP": {"version": {}, "capabilities": []}}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP", "data": {}}`,
		`{"return": {}, "id": 1}`,
		`{"return": null, "id": 18446744073709551615}`,
		`{"error": {"class": "GenericError", "desc": "x"}, "id": 3}`,
		`{"return": {}, "error": {}, "id": 1}`,
		`{"return": {}, "id": "one"}`,
		`{"event": null}`,
		`[]`, `{}`, `{"id": -1}`, "\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("error %v, want ErrProtocol", err)
			}
			return
		}
		if m.kind < kindGreeting || m.kind > kindError {
			t.Fatalf("kind %d", m.kind)
		}
	})
}

// FuzzLines: whatever the bytes, no line is longer than the limit, and putting
// the lines together again gives the bytes without the white space.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nbb\r\n\nccc\n"), uint16(10))
	f.Add(bytes.Repeat([]byte("x"), 3*readBuffer), uint16(100))
	f.Add(append(bytes.Repeat([]byte("x"), 2*readBuffer), '\n', 'y', '\n'), uint16(65535))
	f.Fuzz(func(t *testing.T, stream []byte, limit uint16) {
		l := newLines(bytes.NewReader(stream), int(limit))
		var got []byte
		for {
			line, err := l.next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, ErrProtocol) {
					t.Fatalf("error %v", err)
				}
				break
			}
			if len(line) == 0 || len(line) > int(limit) {
				t.Fatalf("a line of %d bytes, limit %d", len(line), limit)
			}
			got = append(got, line...)
			got = append(got, '\n')
		}
		var want []byte
		for _, line := range bytes.SplitAfter(stream, []byte("\n")) {
			if !bytes.HasSuffix(line, []byte("\n")) || len(line) > int(limit) {
				break
			}
			if line = bytes.TrimSpace(line); len(line) > 0 {
				want = append(append(want, line...), '\n')
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("lines %q, want %q", got, want)
		}
	})
}
