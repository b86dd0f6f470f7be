package address_test

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"fermata/protocol/address"
)

func TestCheck(t *testing.T) {
	long := "/" + strings.Repeat("a", 107)
	for _, c := range []struct{ addr, listen, dial string }{ // parts of the refusals; empty: accepted
		{"192.0.2.1:7410", "", ""},
		{"head1:7410", "", ""},
		{"[2001:db8::1]:7410", "", ""},
		{"unix:/run/f.sock", "", ""},
		{"unix:///run/f.sock", "", ""},
		{"/run/a b%20#?.sock", "", ""},
		{"0.0.0.0:7410", "", "every address"},
		{"[::]:7410", "", "192.0.2.1:7410"},
		{":7410", "", "every address"},
		{"192.0.2.1", "neither", "neither"},
		{"192.0.2.1:", "neither", "neither"},
		{"unix:", "1 to 107 bytes", "1 to 107 bytes"},
		{"unix:" + long, "108", "108"},
	} {
		for what, got := range map[string]struct {
			err  error
			want string
		}{"listen": {address.Check(c.addr), c.listen}, "dial": {address.CheckDialled(c.addr), c.dial}} {
			if (got.err != nil) != (got.want != "") || got.err != nil && !strings.Contains(got.err.Error(), got.want) {
				t.Errorf("%s %q: error %v, want %q", what, c.addr, got.err, got.want)
			}
		}
	}
}

// A socket is reached whatever characters its path holds.
func TestDialOption_OddPaths(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"plain", "100% full", "a%20b", "c#d", "e?f=g", "h i"} {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		go func() { _ = server.Serve(l) }() // ends with the server
		conn, err := grpc.NewClient(address.Target, address.DialOption("unix:"+path), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		err = conn.Invoke(t.Context(), "/no/Method", &emptypb.Empty{}, &emptypb.Empty{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v, want the server's answer", name, err)
		}
		conn.Close()
		server.Stop()
	}
}
