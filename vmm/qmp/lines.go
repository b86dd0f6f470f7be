package qmp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxLine bounds one message of the monitor. The longest real one, the schema,
// is about 200 KB in QEMU 7.2 and 300 KB in 10; a monitor that sends more than
// this is broken, and must not take the caller's memory with it.
const maxLine = 4 << 20

// readBuffer holds every ordinary reply; longer lines are put together.
const readBuffer = 16 << 10

// lines cuts a stream into lines of at most limit bytes.
type lines struct {
	r     *bufio.Reader
	limit int
	long  []byte // reused for lines longer than r's buffer
}

func newLines(r io.Reader, limit int) *lines {
	return &lines{r: bufio.NewReaderSize(r, readBuffer), limit: limit}
}

// next returns the next line that is not blank, without its end. The bytes are
// valid until the following call. A last line that has no end is io.EOF: the
// monitor died while it wrote.
func (l *lines) next() ([]byte, error) {
	for {
		line, err := l.read()
		if err != nil {
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}

func (l *lines) read() ([]byte, error) {
	part, err := l.r.ReadSlice('\n')
	if err == nil && len(part) <= l.limit {
		return part, nil
	}
	l.long = l.long[:0]
	for {
		if len(l.long)+len(part) > l.limit {
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrProtocol, l.limit)
		}
		l.long = append(l.long, part...)
		if err == nil {
			return l.long, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		part, err = l.r.ReadSlice('\n')
	}
}
