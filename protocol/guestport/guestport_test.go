package guestport

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReadWrite(t *testing.T) {
	var b bytes.Buffer
	want := Request{ID: "7", Do: Hide, Ranges: []Range{{Start: 4096, Bytes: 8192}}}
	for range 2 {
		if err := Write(&b, want); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&b)
	for range 2 {
		var got Request
		if err := Read(r, &got); err != nil || got.ID != "7" || got.Do != Hide || len(got.Ranges) != 1 || got.Ranges[0] != want.Ranges[0] || got.Validate() != nil {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if err := Read(r, &Request{}); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if err := Write(io.Discard, Reply{Error: strings.Repeat("x", MaxLine)}); err == nil {
		t.Error("a line beyond the limit is written")
	}
	if err := Read(NewReader(strings.NewReader(strings.Repeat("x", MaxLine+1)+"\n")), &Request{}); err == nil || errors.Is(err, ErrNoJSON) {
		t.Errorf("a line beyond the limit is read: %v", err)
	}
}

// TestReply_OfMostRangesFits: what an agent may have to say is no longer than a line.
func TestReply_OfMostRangesFits(t *testing.T) {
	reply := Reply{ID: strings.Repeat("x", 64)}
	for i := range uint64(MaxRanges) {
		reply.Ranges = append(reply.Ranges, Range{Start: 1<<52 - (2*i+2)*PageBytes, Bytes: PageBytes})
	}
	reply.Zeroed = reply.Ranges
	if err := Write(io.Discard, reply); err != nil {
		t.Error(err)
	}
}

// FuzzRead: whatever a guest says is refused, or whole pages.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"id":"1","do":"hide","ranges":[{"start":4096,"bytes":4096}]}` + "\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		var req Request
		if Read(NewReader(bytes.NewReader(line)), &req) != nil || req.Validate() != nil {
			return
		}
		for _, r := range req.Ranges {
			if r.Bytes == 0 || r.Start%PageBytes != 0 || r.Bytes%PageBytes != 0 || r.Start+r.Bytes < r.Start {
				t.Fatalf("%+v", r)
			}
		}
	})
}
