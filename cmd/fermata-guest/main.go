// Command fermata-guest runs inside a guest: it tells the node's agent which memory
// holds secrets, so that no checkpoint has it, and the guest's programs when they
// were restarted without it. It needs the port that a guest gets with guest_tool in
// its specification, and root.
//
//	fermata-guest hide --pid PID --address ADDRESS --bytes N
//	fermata-guest hide --physical START+BYTES
//	fermata-guest show …
//	fermata-guest status
//	fermata-guest watch
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fermata/protocol/guestport"
)

const usage = `usage: fermata-guest COMMAND [FLAGS]

  hide    register memory: it is in no checkpoint that is cut after this returns
  show    withdraw it
  status  print what is registered, as JSON
  watch   print a line, as JSON, whenever the guest was restarted, until ended

Memory of hide and show:

  --pid PID --address ADDRESS --bytes N  of a process, whole pages; it must be locked
                                         (mlock), private and written to, and must not
                                         be moved: see vm.compact_unevictable_allowed
  --physical START+BYTES                 as the kernel counts it; may be repeated

Other flags:

  --timeout DURATION  how long to wait for the host (10s)
  --every DURATION    how often watch asks (1s)

Exit status: 0 done, 1 not done, 2 wrong usage.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], openPort, os.Stdout, os.Stderr))
}

// options are what the command line says.
type options struct {
	command  string
	pid      int
	address  uint64
	bytes    uint64
	physical ranges
	timeout  time.Duration
	every    time.Duration
}

// ranges is a flag that may be repeated.
type ranges []guestport.Range

func (r *ranges) String() string { return fmt.Sprint(*r) }

// Set reads START+BYTES.
func (r *ranges) Set(text string) error {
	start, length, ok := strings.Cut(text, "+")
	s, err := strconv.ParseUint(start, 0, 64)
	n, lengthErr := strconv.ParseUint(length, 0, 64)
	if !ok || err != nil || lengthErr != nil {
		return errors.New("want START+BYTES, such as 0x20000000+65536")
	}
	*r = append(*r, guestport.Range{Start: s, Bytes: n})
	return nil
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	if len(args) == 0 {
		return o, errors.New("no command")
	}
	o.command = args[0]
	f := flag.NewFlagSet(o.command, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() { fmt.Fprint(stderr, usage) }
	f.IntVar(&o.pid, "pid", 0, "")
	f.Uint64Var(&o.address, "address", 0, "")
	f.Uint64Var(&o.bytes, "bytes", 0, "")
	f.Var(&o.physical, "physical", "")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "")
	f.DurationVar(&o.every, "every", time.Second, "")
	if err := f.Parse(args[1:]); err != nil {
		return o, err
	}
	memory := o.pid != 0 || len(o.physical) > 0
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q is too much", f.Arg(0))
	case o.timeout <= 0 || o.every <= 0:
		return o, errors.New("a duration is not positive")
	case o.command == "hide" || o.command == "show":
		if !memory || o.pid != 0 && (o.bytes == 0 || len(o.physical) > 0) {
			return o, errors.New("give --pid, --address and --bytes, or --physical")
		}
	case o.command != "status" && o.command != "watch":
		return o, fmt.Errorf("command %q", o.command)
	case memory:
		return o, fmt.Errorf("%s takes no memory", o.command)
	}
	return o, nil
}

// run is the program; open opens the port.
func run(ctx context.Context, args []string, open func(context.Context) (port, error), stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "fermata-guest: %v\n%s", err, usage)
		return 2
	}
	c := &client{open: open, timeout: o.timeout}
	switch o.command {
	case "watch":
		err = watch(ctx, c, o.every, stdout)
	default:
		err = change(ctx, c, o, stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "fermata-guest: %s: %v\n", o.command, err)
		return 1
	}
	return 0
}

// maxMoves is how often memory may have moved while it was registered.
const maxMoves = 5

// change carries hide, show and status out.
func change(ctx context.Context, c *client, o options, stdout io.Writer) error {
	req := guestport.Request{Do: guestport.Verb(o.command), Ranges: o.physical}
	for range maxMoves {
		if o.pid != 0 {
			var err error
			if req.Ranges, err = physical(o.pid, o.address, o.bytes); err != nil {
				return err
			}
		}
		reply, err := c.ask(ctx, req)
		if err != nil {
			return err
		}
		if o.pid != 0 && req.Do == guestport.Hide {
			// Where it lay when it was looked up, it may not lie any more.
			now, err := physical(o.pid, o.address, o.bytes)
			if err != nil {
				return err
			}
			if !slices.Equal(now, req.Ranges) {
				continue
			}
		}
		return print(stdout, reply)
	}
	return errors.New("the memory is moved all the time: lock it, and set vm.compact_unevictable_allowed to 0")
}

// watch prints the answer of the host whenever the guest lives another life. A host
// that does not answer may be in the middle of a restart.
func watch(ctx context.Context, c *client, every time.Duration, stdout io.Writer) error {
	first, err := c.ask(ctx, guestport.Request{Do: guestport.Status})
	if err != nil {
		return err
	}
	life := first.Life
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
		reply, err := c.ask(ctx, guestport.Request{Do: guestport.Status})
		if err != nil || reply.Life == life {
			continue
		}
		life = reply.Life
		if err := print(stdout, reply); err != nil {
			return err
		}
	}
}

func print(w io.Writer, reply guestport.Reply) error {
	reply.ID = ""
	b, err := json.Marshal(reply)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}
