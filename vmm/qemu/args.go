package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// ramID is the name of the one RAM block.
const ramID = "ram0"

// Descriptor numbers in QEMU of the monitors' listeners; see firstNICFile.
const (
	qmpFD   = 3
	guardFD = 4
)

// arguments returns QEMU's arguments for c, whose accel is resolved.
//
//   - -S: no guest runs before its Continue, a fresh one included, so that a
//     cluster is released together.
//   - rtc clock=vm: the real-time clock stands still with the guest and goes on
//     from the same second after a restart. With the default it would follow the
//     host, and a pause would be a step in the guest's time.
//   - no S3 and S4: a suspended guest has no vCPU to stop but its timers run.
//   - the monitors and the guest's ports listen on sockets that were bound before:
//     they can be dialled at once, there is no moment at which only QEMU knows its
//     name, and their paths may be longer than a socket address.
func (c Config) arguments() []string {
	args := []string{
		"-name", c.Name + ",debug-threads=on",
		"-no-user-config", "-nodefaults", "-display", "none", "-vga", "none",
		"-msg", "timestamp=on",
		"-S",
		"-accel", c.accelArgument(),
		"-machine", c.Machine + ",memory-backend=" + ramID + ",vmport=off,dump-guest-core=off",
		"-cpu", c.CPU,
		"-smp", c.smpArgument(),
		"-m", fmt.Sprintf("size=%dM", c.MemoryBytes/mib),
		"-object", c.memoryObject(),
		"-rtc", "base=utc,clock=vm",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=guard,fd=%d,server=on,wait=off", guardFD),
		"-mon", "chardev=guard,mode=control",
		"-add-fd", fmt.Sprintf("fd=%d,set=%[1]d", c.inheritedFD(inheritedConsole)),
		"-chardev", fmt.Sprintf("file,id=console,append=on,path=/dev/fdset/%d", c.inheritedFD(inheritedConsole)),
	}
	if c.Confine.Sandbox {
		args = append(args, "-sandbox", sandbox)
	}
	for _, g := range c.sleepGlobals() {
		args = append(args, "-global", g)
	}
	if c.Kernel != "" {
		args = append(args, "-kernel", c.inheritedPath(inheritedKernel))
		if c.Initrd != "" {
			args = append(args, "-initrd", c.inheritedPath(inheritedInitrd))
		}
		if c.Cmdline != "" {
			args = append(args, "-append", c.Cmdline)
		}
	}
	args = append(args, c.diskArguments()...)
	for i, n := range c.NICs {
		backend := "dgram,id=%s,local.type=fd,local.str=%d"
		if n.TAP {
			backend = "tap,id=%s,fd=%d"
		}
		args = append(args, "-netdev", fmt.Sprintf(backend, netdevID(n.Name), guestFD(i)))
	}
	for i, port := range c.ports() {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", port.id, c.portFD(i)))
	}
	for _, d := range c.devices() {
		args = append(args, "-device", d)
	}
	if c.Incoming {
		args = append(args, "-incoming", "defer")
	}
	return args
}

// devices returns the device arguments in order. They hold no path and no
// descriptor: equal lists mean equal device state, on any host.
func (c Config) devices() []string {
	bus := "pcie.0"
	if !c.isQ35() {
		bus = "pci.0"
	}
	out := []string{"isa-serial,id=serial0,chardev=console"}
	for i, d := range c.Disks {
		out = append(out, fmt.Sprintf("virtio-blk-pci,id=disk-%s,drive=%s,bus=%s,addr=0x%x,bootindex=%d%s",
			d.Name, blockNode(i), bus, firstDiskSlot+i, i+1, d.errorPolicy()))
	}
	for i, n := range c.NICs {
		// Without romfile QEMU would load a network boot program into the card.
		card := fmt.Sprintf("virtio-net-pci,id=nic-%s,netdev=%s,mac=%s,bus=%s,addr=0x%x,romfile=",
			n.Name, netdevID(n.Name), strings.ToLower(n.MAC), bus, firstNICSlot+i)
		if n.MTU != 0 {
			card += fmt.Sprintf(",host_mtu=%d", n.MTU)
		}
		out = append(out, card)
	}
	ports := 2 // the first is kept for a console
	if c.ToolPort != "" {
		ports = 3
	}
	if c.GuestAgent || c.ToolPort != "" {
		out = append(out, fmt.Sprintf("virtio-serial-pci,id=agent-bus,bus=%s,addr=0x%x,max_ports=%d", bus, agentSlot, ports))
	}
	if c.GuestAgent {
		out = append(out, "virtserialport,bus=agent-bus.0,nr=1,chardev=agent,name=org.qemu.guest_agent.0")
	}
	if c.ToolPort != "" {
		out = append(out, "virtserialport,bus=agent-bus.0,nr=2,chardev=tool,name="+c.ToolPort)
	}
	return out
}

func (c Config) isQ35() bool { return strings.HasPrefix(c.Machine, "pc-q35-") }

func (c Config) accelArgument() string {
	if c.Accel == TCG {
		return "tcg,thread=multi"
	}
	return string(c.Accel)
}

func (c Config) sleepGlobals() []string {
	device := "PIIX4_PM"
	if c.isQ35() {
		device = "ICH9-LPC"
	}
	return []string{device + ".disable_s3=1", device + ".disable_s4=1"}
}

func (c Config) memoryObject() string {
	return jsonArgument(map[string]any{
		"qom-type": "memory-backend-file",
		"id":       ramID,
		"size":     c.MemoryBytes,
		"mem-path": c.inheritedPath(inheritedRAM),
		"share":    true,
	})
}

// blockNode names the block node of disk i. By number: QEMU allows 31
// characters.
func blockNode(i int) string { return "disk" + strconv.Itoa(i) }

func netdevID(nic string) string { return "net-" + nic }

// jsonArgument renders maps of strings, numbers and booleans, which always
// marshal.
func jsonArgument(v map[string]any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// smpArgument gives a guest with one vCPU room for a second. A machine that can
// never have two lets TCG leave out the guest's memory barriers and atomics,
// though device models run on another thread (mended in QEMU 8.1, commit
// c914d46d0a): a guest's kick of a virtio queue can be lost. The accelerator
// does not decide, so that the machine is the same under all of them.
func (c Config) smpArgument() string {
	if c.VCPUs == 1 {
		return "1,maxcpus=2,sockets=2,cores=1,threads=1"
	}
	return fmt.Sprintf("%d,sockets=1,cores=%d,threads=1", c.VCPUs, c.VCPUs)
}
