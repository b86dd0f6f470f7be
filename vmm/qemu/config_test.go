package qemu

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func goodConfig() Config {
	return Config{
		Name: "a1", Accel: TCG, Machine: "pc-q35-7.2", CPU: "qemu64", MemoryBytes: 64 * mib, VCPUs: 2,
		Kernel: "/boot/vm,linuz", Initrd: "/boot/initrd", Cmdline: "console=ttyS0 quiet",
		Disks: []Disk{
			{Name: "root", Path: "/disks/root, the first.qcow2", Format: QCOW2, Backing: &Image{Path: "/disks/base", Format: Raw}},
			{Name: "data", Path: "/disks/data.img", Format: Raw, ReadOnly: true},
		},
		NICs: []NIC{{Name: "eth0", MAC: "02:00:00:00:00:0A"}, {Name: "eth1", MAC: "02:00:00:00:00:0b", MTU: 9000}},
		Dir:  "/run/fermata/a,1", MemoryDir: "/dev/shm",
	}
}

func TestConfig_Validate(t *testing.T) {
	if err := goodConfig().Validate(); err != nil {
		t.Fatalf("a good configuration: %v", err)
	}
	for _, c := range []struct {
		name  string
		spoil func(*Config)
		want  string
	}{
		{"name with a comma", func(c *Config) { c.Name = "a,b" }, `name "a,b"`},
		{"name with a slash", func(c *Config) { c.Name = "../a" }, `name "../a"`},
		{"alias q35", func(c *Config) { c.Machine = "q35" }, `machine "q35"`},
		{"alias pc", func(c *Config) { c.Machine = "pc" }, `machine "pc"`},
		{"machine with options", func(c *Config) { c.Machine = "pc-q35-7.2,usb=on" }, "machine"},
		{"cpu host", func(c *Config) { c.CPU = "host" }, "different CPU on every host"},
		{"cpu max with features", func(c *Config) { c.CPU = "max,-avx" }, "different CPU on every host"},
		{"no cpu", func(c *Config) { c.CPU = "" }, `cpu ""`},
		{"accel", func(c *Config) { c.Accel = "xen" }, `accel "xen"`},
		{"little memory", func(c *Config) { c.MemoryBytes = 8 * mib }, "memory of 8388608"},
		{"odd memory", func(c *Config) { c.MemoryBytes++ }, "multiple of 1 MiB"},
		{"no vcpu", func(c *Config) { c.VCPUs = 0 }, "vcpus 0"},
		{"initrd alone", func(c *Config) { c.Kernel = "" }, "without a kernel"},
		{"relative dir", func(c *Config) { c.Dir = "run" }, `dir "run"`},
		{"relative memory dir", func(c *Config) { c.MemoryDir = "" }, `memory dir ""`},
		{"disk format", func(c *Config) { c.Disks[0].Format = "vmdk" }, "disk root: format"},
		{"disk twice", func(c *Config) { c.Disks[1].Name = "root" }, `name "root" is taken`},
		{"disk path", func(c *Config) { c.Disks[1].Path = "data.img" }, "disk data: path"},
		{"backing of a raw disk", func(c *Config) { c.Disks[1].Backing = &Image{Path: "/a", Format: Raw} }, "disk data: format"},
		{"backing of a raw image", func(c *Config) { c.Disks[0].Backing.Backing = &Image{Path: "/a", Format: Raw} }, "backing image /disks/base: format"},
		{"backing format", func(c *Config) { c.Disks[0].Backing.Format = "" }, "backing image /disks/base: format"},
		{"backing without end", func(c *Config) { b := &Image{Path: "/a", Format: QCOW2}; b.Backing = b; c.Disks[0].Backing = b }, "more than 16"},
		{"card twice", func(c *Config) { c.NICs[1].Name = "eth0" }, `name "eth0" is taken`},
		{"address twice", func(c *Config) { c.NICs[1].MAC = "02:00:00:00:00:0a" }, "02:00:00:00:00:0a is taken"},
		{"group address", func(c *Config) { c.NICs[0].MAC = "03:00:00:00:00:00" }, "no unicast"},
		{"save method", func(c *Config) { c.Save = "copy" }, `save method "copy"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := goodConfig()
			c.spoil(&config)
			if err := config.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestConfig_ValidateAllAtOnce(t *testing.T) {
	err := Config{}.Validate()
	for _, want := range []string{"name", "machine", "cpu", "memory of", "vcpus", "dir", "memory dir"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
}

func TestConfig_AllowUnportableCPU(t *testing.T) {
	c := goodConfig()
	c.CPU, c.AllowUnportableCPU = "host,-arch-capabilities", true
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// TestConfig_Arguments holds what the guest sees, which must never change for
// an existing machine type.
func TestConfig_Arguments(t *testing.T) {
	c := goodConfig()
	c.VCPUs = 1
	if got := c.smpArgument(); got != "1,maxcpus=2,sockets=2,cores=1,threads=1" {
		t.Errorf("one vCPU: -smp %s leaves TCG no reason for barriers", got)
	}
	c.VCPUs = 2
	c.Incoming = true
	got := strings.Join(c.arguments(), "\n")
	for _, want := range []string{
		"-S\n-accel\ntcg,thread=multi",
		"-machine\npc-q35-7.2,memory-backend=ram0,vmport=off,dump-guest-core=off",
		"-smp\n2,sockets=1,cores=2,threads=1",
		"-m\nsize=64M",
		`{"id":"ram0","mem-path":"/proc/self/fd/12","qom-type":"memory-backend-file","share":true,"size":67108864}`,
		"-rtc\nbase=utc,clock=vm",
		"-global\nICH9-LPC.disable_s3=1",
		"-add-fd\nfd=13,set=13\n-chardev\nfile,id=console,append=on,path=/dev/fdset/13",
		"-kernel\n/proc/self/fd/14\n-initrd\n/proc/self/fd/15\n-append\nconsole=ttyS0 quiet",
		`-add-fd
fd=9,set=9
-add-fd
fd=10,set=10
-blockdev
{"backing":{"driver":"raw","file":{"driver":"file","filename":"/dev/fdset/10","read-only":true},"read-only":true},` +
			`"discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"/dev/fdset/9","read-only":false},"node-name":"disk0","read-only":false}
-add-fd
fd=11,set=11
-blockdev
{"driver":"raw","file":{"driver":"file","filename":"/dev/fdset/11","read-only":true},"node-name":"disk1","read-only":true}`,
		"dgram,id=net-eth0,local.type=fd,local.str=5",
		"dgram,id=net-eth1,local.type=fd,local.str=7",
		"-incoming\ndefer",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("arguments lack %q:\n%s", want, got)
		}
	}
	devices := strings.Join(c.devices(), "\n")
	const want = `isa-serial,id=serial0,chardev=console
virtio-blk-pci,id=disk-root,drive=disk0,bus=pcie.0,addr=0x2,bootindex=1
virtio-blk-pci,id=disk-data,drive=disk1,bus=pcie.0,addr=0x3,bootindex=2
virtio-net-pci,id=nic-eth0,netdev=net-eth0,mac=02:00:00:00:00:0a,bus=pcie.0,addr=0x10,romfile=
virtio-net-pci,id=nic-eth1,netdev=net-eth1,mac=02:00:00:00:00:0b,bus=pcie.0,addr=0x11,romfile=,host_mtu=9000`
	if devices != want {
		t.Errorf("devices\n%s\nwant\n%s", devices, want)
	}
}

func TestFitForRAM(t *testing.T) {
	c := Config{MemoryBytes: 64 * mib}
	for _, k := range []struct {
		name string
		fs   unix.Statfs_t
		want string // none if empty
	}{
		{"tmpfs", unix.Statfs_t{Type: unix.TMPFS_MAGIC, Bsize: 4096, Blocks: 1 << 20, Bavail: 64 * mib / 4096}, ""},
		{"tmpfs without limit", unix.Statfs_t{Type: unix.TMPFS_MAGIC, Bsize: 4096}, ""},
		{"full tmpfs", unix.Statfs_t{Type: unix.TMPFS_MAGIC, Bsize: 4096, Blocks: 1 << 20, Bavail: 64*mib/4096 - 1}, "no space"},
		{"huge pages", unix.Statfs_t{Type: unix.HUGETLBFS_MAGIC, Bsize: 2 * mib, Blocks: 64, Bavail: 32}, ""},
		{"no huge pages", unix.Statfs_t{Type: unix.HUGETLBFS_MAGIC, Bsize: 2 * mib}, "no space"},
		{"too huge pages", unix.Statfs_t{Type: unix.HUGETLBFS_MAGIC, Bsize: 1024 * mib, Blocks: 4, Bavail: 4}, "not whole pages"},
		{"ext4", unix.Statfs_t{Type: unix.EXT4_SUPER_MAGIC, Bsize: 4096, Blocks: 1 << 20, Bavail: 1 << 20}, "unfit"},
	} {
		err := fitForRAM(c, k.fs, 0)
		if (err != nil) != (k.want != "") || (err != nil && !strings.Contains(err.Error(), k.want)) {
			t.Errorf("%s: error %v, want %q", k.name, err, k.want)
		}
	}
}

func TestParseStat(t *testing.T) {
	const tail = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	s, err := parseStat("42 (qemu) (x) S" + tail)
	if err != nil || s.started != 4711 || s.zombie {
		t.Errorf("state %+v, %v", s, err)
	}
	if s, err := parseStat("42 (qemu) Z" + tail); err != nil || !s.zombie {
		t.Errorf("state %+v, %v, want a zombie", s, err)
	}
	for _, bad := range []string{"", "42 qemu S 1", "42 (qemu) S 1 2", "42 (qemu) S" + strings.Replace(tail, "4711", "x", 1)} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestAccelFor(t *testing.T) {
	for flags, want := range map[string]Accel{"fpu vmx sse": KVM, "svm": KVM, "fpu hypervisor": TCG, "": TCG} {
		if got, why := accelFor(strings.Fields(flags)); got != want || why == "" {
			t.Errorf("flags %q: %s (%s), want %s", flags, got, why, want)
		}
	}
}
