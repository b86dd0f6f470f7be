# The test guest: a self-checking program that needs no operating system.
#
# It counts. Each step compares the count in a register with the two copies in
# RAM and with what it left in a ring of pages one round ago, then moves all of
# them on and writes a line "C xxxxxxxx" to the serial port. Registers are part of
# the device state and pages are not, so a checkpoint whose two halves are not of
# one instant makes it write "B xxxxxxxx" and stand still. A lost or doubled step
# shows as a gap in the lines.
#
# Between the steps it answers Ethernet frames of type 0x88b5 on its first network
# card (virtio-net by its legacy interface) with the same frame, addresses
# swapped.
#
# It is a multiboot image of raw bytes, so that the bytes depend on nothing but
# this text. The addresses below are known to guest.go.

	.set	LOAD,    0x100000	# this image
	.set	STACK,   0x1f0000	# grows down
	.set	STATE,   0x200000	# see guest.go
	.set	NIC,     0x201000	# the driver's variables
	.set	RXQ,     0x300000	# receive queue, 3 pages
	.set	TXQ,     0x304000	# transmit queue, 3 pages
	.set	BUFFERS, 0x310000	# 256 of 2 KiB
	.set	RING,    0x400000	# 256 pages, one written a step

	.set	COUNT,    STATE + 8
	.set	INVERSE,  STATE + 12
	.set	ECHOED,   STATE + 16

	.set	IO,       NIC + 0	# base port of the card, 0 without one
	.set	RX_SEEN,  NIC + 4	# used entries taken
	.set	RX_GIVEN, NIC + 8	# buffers made available
	.set	TX_GIVEN, NIC + 12	# frames sent

	.set	QSIZE,   256		# entries of a virtqueue; QEMU's default
	.set	AVAIL,   4096		# offset in a queue: flags, idx, ring
	.set	USED,    8192		# offset in a queue: flags, idx, ring
	.set	HEADER,  10		# bytes before a frame in its buffer
	.set	PERIOD,  1 << 21	# time-stamp ticks of a step: about a millisecond

	.set	COM1,    0x3f8

	.set	MAGIC,   0x1badb002
	.set	FLAGS,   0x00010000	# load addresses are given here

	.code32
	.text
image:
	.long	MAGIC, FLAGS, -(MAGIC + FLAGS)
	.long	image, image, image_end, image_end, start

	.globl	start
start:
	cli
	cld
	movl	$STACK, %esp
	call	serial_init

	# RAM may hold an earlier run when the guest was reset.
	movl	$STATE, %edi
	xorl	%eax, %eax
	movl	$0x2000 / 4, %ecx
	rep stosl
	movl	$RING, %edi
	movl	$QSIZE * 4096 / 4, %ecx
	rep stosl
	movl	$0x4d524546, STATE	# "FERM"
	movl	$0x31415441, STATE + 4	# "ATA1"
	notl	INVERSE
	call	nic_init
	xorl	%ebx, %ebx		# the count
	rdtsc
	movl	%eax, %ebp		# when the last step was

step:
	pause
	call	nic_poll
	rdtsc
	movl	%eax, %ecx
	subl	%ebp, %ecx
	cmpl	$PERIOD, %ecx
	jb	step
	movl	%eax, %ebp

	cmpl	%ebx, COUNT
	jne	bad
	movl	%ebx, %eax
	notl	%eax
	cmpl	%eax, INVERSE
	jne	bad
	incl	%ebx
	movl	%ebx, %edi		# this step's page
	andl	$QSIZE - 1, %edi
	shll	$12, %edi
	addl	$RING, %edi
	movl	%ebx, %eax		# what the last round left there
	subl	$QSIZE, %eax
	ja	1f
	xorl	%eax, %eax
1:	cmpl	%eax, (%edi)
	jne	bad
	movl	%ebx, (%edi)
	movl	%ebx, COUNT
	movl	%ebx, %eax
	notl	%eax
	movl	%eax, INVERSE
	movb	$'C', %al
	call	report
	jmp	step

bad:
	movb	$'B', %al
	call	report
1:	hlt
	jmp	1b

# report writes the letter in al and the count as a line.
report:
	call	put
	movb	$' ', %al
	call	put
	movl	%ebx, %edx
	movl	$8, %ecx
1:	roll	$4, %edx
	movl	%edx, %eax
	andl	$15, %eax
	movb	digits(%eax), %al
	call	put
	loop	1b
	movb	$'\n', %al

# put writes the character in al to the serial port.
put:
	pushl	%edx
	pushl	%eax
	movw	$COM1 + 5, %dx
1:	inb	%dx, %al
	testb	$0x20, %al		# room for a character
	jz	1b
	popl	%eax
	movw	$COM1, %dx
	outb	%al, %dx
	popl	%edx
	ret

serial_init:
	movw	$COM1 + 1, %dx
	xorb	%al, %al
	outb	%al, %dx		# no interrupts
	movw	$COM1 + 3, %dx
	movb	$3, %al
	outb	%al, %dx		# 8 bits, no parity
	ret

# nic_init finds the first transitional virtio-net card on bus 0.
nic_init:
	xorl	%ecx, %ecx
1:	movl	%ecx, %esi
	shll	$11, %esi
	orl	$0x80000000, %esi	# configuration space of slot ecx
	movl	%esi, %eax
	call	pci_read
	cmpl	$0x10001af4, %eax
	je	2f
	incl	%ecx
	cmpl	$32, %ecx
	jb	1b
	ret
2:	leal	4(%esi), %eax
	call	pci_read
	orl	$7, %eax		# ports, memory, bus master
	movw	$0xcfc, %dx
	outl	%eax, %dx
	leal	0x10(%esi), %eax
	call	pci_read
	andl	$~3, %eax
	movl	%eax, %esi		# base port

	movb	$0, %al
	call	nic_status		# reset
	movb	$1, %al
	call	nic_status		# seen
	movb	$3, %al
	call	nic_status		# has a driver
	leal	4(%esi), %edx
	xorl	%eax, %eax
	outl	%eax, %dx		# no features

	xorl	%eax, %eax
	movl	$RXQ, %ecx
	call	nic_queue
	jne	9f
	movl	$1, %eax
	movl	$TXQ, %ecx
	call	nic_queue
	jne	9f

	xorl	%ecx, %ecx		# give every buffer to the receive queue
3:	movl	%ecx, %edi
	shll	$4, %edi
	movl	%ecx, %eax
	shll	$11, %eax
	addl	$BUFFERS, %eax
	movl	%eax, RXQ(%edi)
	movl	$0, RXQ + 4(%edi)
	movl	$2048, RXQ + 8(%edi)
	movl	$2, RXQ + 12(%edi)	# the device writes, no next
	movw	%cx, RXQ + AVAIL + 4(,%ecx,2)
	incl	%ecx
	cmpl	$QSIZE, %ecx
	jb	3b
	movl	%ecx, RX_GIVEN
	movw	%cx, RXQ + AVAIL + 2
	movb	$7, %al
	call	nic_status		# driver is ready
	movl	%esi, IO
	leal	16(%esi), %edx
	xorl	%eax, %eax
	outw	%ax, %dx		# buffers in queue 0
9:	ret

nic_status:
	leal	18(%esi), %edx
	outb	%al, %dx
	ret

# nic_queue sets queue eax up at ecx; not equal if it has another size.
nic_queue:
	leal	14(%esi), %edx
	outw	%ax, %dx
	leal	12(%esi), %edx
	inw	%dx, %ax
	cmpw	$QSIZE, %ax
	jne	1f
	movl	%ecx, %eax
	shrl	$12, %eax
	leal	8(%esi), %edx
	outl	%eax, %dx
	xorl	%eax, %eax		# equal
1:	ret

# pci_read reads the register whose address is in eax and leaves it selected.
pci_read:
	movw	$0xcf8, %dx
	outl	%eax, %dx
	movw	$0xcfc, %dx
	inl	%dx, %eax
	ret

# nic_poll answers every frame that has come.
nic_poll:
	movl	IO, %esi
	testl	%esi, %esi
	jz	9f
1:	movl	RX_SEEN, %ecx
	cmpw	%cx, RXQ + USED + 2
	je	9f
	andl	$QSIZE - 1, %ecx
	movl	RXQ + USED + 4(,%ecx,8), %edi	# buffer
	pushl	%edi
	movl	RXQ + USED + 8(,%ecx,8), %ecx	# bytes with header
	shll	$11, %edi
	addl	$BUFFERS, %edi
	cmpw	$0xb588, HEADER + 12(%edi)
	jne	3f

	movl	%edi, TXQ		# one descriptor serves: frames go one by one
	movl	$0, TXQ + 4
	movl	%ecx, TXQ + 8
	movl	$0, TXQ + 12
	movl	HEADER(%edi), %eax	# swap the addresses
	movl	HEADER + 6(%edi), %edx
	movl	%edx, HEADER(%edi)
	movl	%eax, HEADER + 6(%edi)
	movw	HEADER + 4(%edi), %ax
	movw	HEADER + 10(%edi), %dx
	movw	%dx, HEADER + 4(%edi)
	movw	%ax, HEADER + 10(%edi)
	movl	$0, (%edi)		# no offloads
	movl	$0, 4(%edi)
	movw	$0, 8(%edi)
	movl	TX_GIVEN, %ecx
	movl	%ecx, %eax
	andl	$QSIZE - 1, %eax
	movw	$0, TXQ + AVAIL + 4(,%eax,2)
	incl	%ecx
	movl	%ecx, TX_GIVEN
	lock orl $0, (%esp)		# the entry before the index
	movw	%cx, TXQ + AVAIL + 2
	leal	16(%esi), %edx
	movw	$1, %ax
	outw	%ax, %dx
2:	pause
	cmpw	%cx, TXQ + USED + 2
	jne	2b
	incl	ECHOED

3:	popl	%edi			# the buffer goes back
	movl	RX_GIVEN, %ecx
	movl	%ecx, %eax
	andl	$QSIZE - 1, %eax
	movw	%di, RXQ + AVAIL + 4(,%eax,2)
	incl	%ecx
	movl	%ecx, RX_GIVEN
	incl	RX_SEEN
	lock orl $0, (%esp)
	movw	%cx, RXQ + AVAIL + 2
	leal	16(%esi), %edx
	xorl	%eax, %eax
	outw	%ax, %dx
	jmp	1b
9:	ret

digits:
	.ascii	"0123456789abcdef"
	.balign	4
image_end:
