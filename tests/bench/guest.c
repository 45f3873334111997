/*
 * The guest of scripts/bench: the only program in the initrd, run as init.
 *
 * It says "HEARTH-BENCH init NANOSECONDS" as its first act (the clock is the
 * guest's own, since its kernel started), then does what `bench=` on the
 * kernel's command line asks for (boot, exits, block, net, answer), prints a line
 * "HEARTH-BENCH r METRIC VALUE" for each figure and "HEARTH-BENCH done".
 * Whatever goes wrong is "HEARTH-BENCH fail WHAT: WHY". It never ends: the
 * host measures the VMM's memory while the guest idles, and then kills it.
 *
 * C and static, so that no image of a distribution is needed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define KIB 1024UL
#define MIB (1024 * KIB)
/* The part of the disk that is used; the host made the file that large. */
#define SPAN (64 * MIB)
#define QUEUE 16
#define HOST "10.77.0.1"
#define SELF "10.77.0.2"

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void say(const char *format, ...)
{
	char line[256] = "HEARTH-BENCH ";
	size_t used = strlen(line);
	va_list list;
	va_start(list, format);
	used += vsnprintf(line + used, sizeof line - used - 2, format, list);
	va_end(list);
	if (used > sizeof line - 2)
		used = sizeof line - 2;
	line[used++] = '\n';
	if (write(1, line, used) < 0)
		return;
}

static void rest(void)
{
	for (;;)
		pause();
}

static void fail(const char *what)
{
	say("fail %s: %s", what, strerror(errno));
	rest();
}

/* In the order of their names, which the script chose so that they fit. A
 * module that this machine has no device for loads all the same. */
static void load_modules(void)
{
	struct dirent **names;
	int n = scandir("/modules", &names, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		char path[300];
		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			fail(path);
		close(fd);
	}
}

/* When it is not 0, blocks follow one another in an order that visits each once and no
 * two neighbours in turn. */
static uint64_t cold_next;

static uint64_t random_block(uint64_t blocks)
{
	if (cold_next)
		return cold_next++ * 7919 % blocks;
	static uint64_t state = 0x9e3779b97f4a7c15ULL;
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % blocks;
}

/* --- block --- */

static int disk;

static void seq(int write_it, unsigned count, const char *name)
{
	static char *buffer;
	if (!buffer && posix_memalign((void **)&buffer, 4096, MIB))
		fail("memory");
	uint64_t start = now();
	for (unsigned i = 0; i < count; i++) {
		uint64_t at = i * MIB % SPAN;
		if (write_it)
			for (uint64_t k = 0; k < MIB; k += 4096)
				*(uint64_t *)(buffer + k) = at + k;
		ssize_t n = write_it ? pwrite(disk, buffer, MIB, at) : pread(disk, buffer, MIB, at);
		if (n != MIB)
			fail(name);
		/* Every 4 KiB block carries its own place, always. */
		if (!write_it)
			for (uint64_t k = 0; k < MIB; k += 4096)
				if (*(uint64_t *)(buffer + k) != at + k) {
					errno = EILSEQ;
					fail(name);
				}
	}
	if (name)
		say("r %s %.1f", name, (double)count * MIB / 1e6 / ((now() - start) / 1e9));
}

/* DEPTH requests of 4 KiB in flight, COUNT in all. */
static void random_io(int write_it, unsigned depth, unsigned count, const char *name)
{
	static char *buffers;
	struct iocb control[QUEUE], *list[QUEUE];
	struct io_event events[QUEUE];
	aio_context_t context = 0;
	if (!buffers && posix_memalign((void **)&buffers, 4096, QUEUE * 4096))
		fail("memory");
	if (syscall(SYS_io_setup, QUEUE, &context))
		fail("io_setup");
	unsigned begun = 0, ended = 0, fresh = depth;
	for (unsigned i = 0; i < depth; i++)
		list[i] = &control[i];
	uint64_t start = now();
	while (ended < count) {
		unsigned submit = 0;
		for (unsigned i = 0; i < fresh && begun < count; i++, begun++, submit++) {
			struct iocb *c = list[i];
			char *buffer = buffers + (c - control) * 4096;
			uint64_t at = random_block(SPAN / 4096) * 4096;
			memset(c, 0, sizeof *c);
			c->aio_fildes = disk;
			c->aio_lio_opcode = write_it ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
			c->aio_buf = (uint64_t)(uintptr_t)buffer;
			c->aio_nbytes = 4096;
			c->aio_offset = at;
			c->aio_data = at;
			if (write_it)
				*(uint64_t *)buffer = at;
		}
		if (submit && syscall(SYS_io_submit, context, submit, list) != submit)
			fail("io_submit");
		int n = syscall(SYS_io_getevents, context, 1, QUEUE, events, NULL);
		if (n < 1)
			fail("io_getevents");
		for (int i = 0; i < n; i++) {
			struct iocb *c = (struct iocb *)(uintptr_t)events[i].obj;
			if (events[i].res != 4096) {
				errno = -events[i].res;
				fail(name);
			}
			if (!write_it && *(uint64_t *)(buffers + (c - control) * 4096) != events[i].data) {
				errno = EILSEQ;
				fail(name);
			}
			list[i] = c;
		}
		ended += n;
		fresh = n;
	}
	if (name)
		say("r %s %.0f", name, count / ((now() - start) / 1e9));
	syscall(SYS_io_destroy, context);
}

/* Each block once, so that none is in the host's page cache: the host empties that when
 * it reads the word, and has a moment for it. */
static void cold(unsigned depth, unsigned from, unsigned count, const char *name)
{
	say("cold");
	usleep(300000);
	cold_next = from;
	random_io(0, depth, count, name);
	cold_next = 0;
}

/* Writes of 4 KiB, each followed by a flush. */
static void flush(unsigned count, const char *name)
{
	static char *buffer;
	if (!buffer && posix_memalign((void **)&buffer, 4096, 4096))
		fail("memory");
	/* What others wrote is not these writes' to wait for. */
	if (fdatasync(disk))
		fail(name);
	uint64_t start = now();
	for (unsigned i = 0; i < count; i++) {
		uint64_t at = random_block(SPAN / 4096) * 4096;
		*(uint64_t *)buffer = at;
		if (pwrite(disk, buffer, 4096, at) != 4096 || fdatasync(disk))
			fail(name);
	}
	say("r %s %.0f", name, count / ((now() - start) / 1e9));
}

static void block(unsigned passes, unsigned scale)
{
	for (int i = 0; (disk = open("/dev/vda", O_RDWR | O_DIRECT)) < 0; i++) {
		if (i == 200)
			fail("/dev/vda");
		usleep(10000);
	}
	say("ready");
	seq(1, SPAN / MIB, NULL);
	random_io(0, QUEUE, 500, NULL);
	for (unsigned i = 0; i < passes; i++) {
		seq(0, 32 * scale, "seq_read_1m");
		seq(1, 32 * scale, "seq_write_1m");
		random_io(0, 1, 1000 * scale, "read_4k_qd1");
		random_io(1, 1, 1000 * scale, "write_4k_qd1");
		random_io(0, QUEUE, 4000 * scale, "read_4k_qd16");
		random_io(1, QUEUE, 4000 * scale, "write_4k_qd16");
	}
	/* Last, for the host's page cache is another one afterwards. */
	for (unsigned i = 0; i < passes; i++)
		flush(500 * scale, "flush_4k");
	for (unsigned i = 0; i < passes; i++) {
		cold(1, 1, 500, "cold_read_4k_qd1");
		cold(QUEUE, 5000, 2000, "cold_read_4k_qd16");
	}
}

/* --- net --- */

static struct sockaddr_in address(const char *ip, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	inet_pton(AF_INET, ip, &a.sin_addr);
	return a;
}

static void configure(void)
{
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	struct ifreq r = { 0 };
	strcpy(r.ifr_name, "eth0");
	for (int i = 0; ioctl(s, SIOCGIFINDEX, &r); i++) {
		if (i == 200)
			fail("eth0");
		usleep(10000);
	}
	struct sockaddr_in a = address(SELF, 0);
	memcpy(&r.ifr_addr, &a, sizeof a);
	if (ioctl(s, SIOCSIFADDR, &r))
		fail("SIOCSIFADDR");
	a = address("255.255.255.0", 0);
	memcpy(&r.ifr_netmask, &a, sizeof a);
	if (ioctl(s, SIOCSIFNETMASK, &r))
		fail("SIOCSIFNETMASK");
	r.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(s, SIOCSIFFLAGS, &r))
		fail("SIOCSIFFLAGS");
	close(s);
}

static int dial(int type, uint16_t port)
{
	int s = socket(AF_INET, type, 0), one = 1;
	struct timeval limit = { .tv_sec = 2 };
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (type == SOCK_STREAM)
		setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	struct sockaddr_in a = address(HOST, port);
	for (int i = 0; connect(s, (struct sockaddr *)&a, sizeof a); i++) {
		if (i == 50)
			fail("connect");
		usleep(20000);
	}
	return s;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

/* The median time of a 64-byte echo, in microseconds. */
static void round_trip(int s, unsigned count, const char *name)
{
	static uint64_t times[4096];
	char data[64] = { 0 };
	unsigned lost = 0;
	for (unsigned i = 0; i < count; i++) {
		uint64_t start = now();
		if (send(s, data, sizeof data, 0) != sizeof data)
			fail(name);
		if (recv(s, data, sizeof data, MSG_WAITALL) != sizeof data) {
			if (++lost > 3)
				fail(name);
			i--;
			continue;
		}
		times[i] = now() - start;
	}
	qsort(times, count, sizeof *times, by_size);
	if (name)
		say("r %s %.2f", name, times[count / 2] / 1e3);
}

static void transfer(int out, uint64_t size, const char *name)
{
	static char buffer[64 * KIB];
	int s = dial(SOCK_STREAM, out ? 7003 : 7004);
	uint64_t start = now(), left = size;
	if (out) {
		while (left) {
			ssize_t n = send(s, buffer, left < sizeof buffer ? left : sizeof buffer, 0);
			if (n <= 0)
				fail(name);
			left -= n;
		}
		/* The host answers when it has read the last byte. */
		shutdown(s, SHUT_WR);
		if (recv(s, buffer, 1, 0) != 1)
			fail(name);
	} else {
		if (send(s, &size, sizeof size, 0) != sizeof size)
			fail(name);
		while (left) {
			ssize_t n = recv(s, buffer, sizeof buffer, 0);
			if (n <= 0)
				fail(name);
			left -= n;
		}
	}
	if (name)
		say("r %s %.1f", name, size / 1e6 / ((now() - start) / 1e9));
	close(s);
}

static void net(unsigned passes, unsigned scale)
{
	configure();
	say("ready");
	int udp = dial(SOCK_DGRAM, 7001), tcp = dial(SOCK_STREAM, 7002);
	round_trip(udp, 50, NULL);
	round_trip(tcp, 50, NULL);
	transfer(1, 4 * MIB, NULL);
	transfer(0, 4 * MIB, NULL);
	for (unsigned i = 0; i < passes; i++) {
		round_trip(udp, 300 * scale, "udp_rtt");
		round_trip(tcp, 300 * scale, "tcp_rtt");
		transfer(1, 24 * MIB * scale, "tcp_guest_to_host");
		transfer(0, 24 * MIB * scale, "tcp_host_to_guest");
	}
}

/* Sends back what comes, for as long as the machine lives. */
static void answer(void)
{
	configure();
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in self = address(SELF, 7005), from;
	if (bind(s, (struct sockaddr *)&self, sizeof self))
		fail("bind");
	say("ready");
	for (;;) {
		char data[64];
		socklen_t length = sizeof from;
		ssize_t n = recvfrom(s, data, sizeof data, 0, (struct sockaddr *)&from, &length);
		if (n < 0 || sendto(s, data, n, 0, (struct sockaddr *)&from, length) != n)
			fail("answer");
	}
}

/* The kernel's log, for `HEARTH_BENCH_LOG`: where the boot's time goes. */
static void kernel_log(void)
{
	static char text[512 * KIB];
	int n = klogctl(3 /* SYSLOG_ACTION_READ_ALL */, text, sizeof text);
	for (int at = 0; at < n;) {
		ssize_t k = write(1, text + at, n - at);
		if (k <= 0)
			break;
		at += k;
	}
}

int main(void)
{
	say("init %llu", (unsigned long long)now());
	const char *what = getenv("bench"), *text = getenv("passes");
	unsigned passes = text ? atoi(text) : 3;
	text = getenv("scale");
	unsigned scale = text ? atoi(text) : 1;
	if (scale < 1 || scale > 10)
		scale = 1;
	if (!what)
		what = "boot";
	mkdir("/dev", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mkdir("/sys", 0755);
	mount("sys", "/sys", "sysfs", 0, NULL);
	char clock[64] = "?";
	int fd = open("/sys/devices/system/clocksource/clocksource0/current_clocksource", O_RDONLY);
	if (fd >= 0) {
		ssize_t n = read(fd, clock, sizeof clock - 1);
		if (n > 0)
			clock[n - 1] = 0;
		close(fd);
	}
	say("clock %s", clock);
	if (!strcmp(what, "log"))
		kernel_log();
	if (!strcmp(what, "block") || !strcmp(what, "net") || !strcmp(what, "exits") || !strcmp(what, "answer"))
		load_modules();
	if (!strcmp(what, "block"))
		block(passes, scale);
	if (!strcmp(what, "net"))
		net(passes, scale);
	if (!strcmp(what, "answer"))
		answer();
	say("done");
	rest();
}
