# shellcheck shell=bash
# A program of a few bytes for an initrd that holds for a template.

# make_reseed FILE: has the kernel draw a new seed for its random numbers, which a copy of
# a machine needs before it draws the first: ioctl(open("/dev/urandom", O_RDONLY),
# RNDRESEEDCRNG), and its errno as the exit status. What is written to /dev/urandom goes
# into that seed, but by itself only with the next one, up to a minute later (random(4)).
# Nothing in Debian that would do in an initrd makes this call, and its cloud kernel has
# no driver for the generation id, which would.
make_reseed() {
    python3 - "$1" <<'PYTHON'
import struct, sys

path = b"/dev/urandom\0"
code = bytes.fromhex(
    "b802000000"      # mov eax, 2 (open)
    "488d3d1d000000"  # lea rdi, [path]
    "31f6"            # xor esi, esi
    "0f05"            # syscall
    "89c7"            # mov edi, eax
    "be07520000"      # mov esi, RNDRESEEDCRNG: _IO('R', 7)
    "b810000000"      # mov eax, 16 (ioctl)
    "0f05"            # syscall
    "89c7"            # mov edi, eax
    "f7df"            # neg edi
    "b83c000000"      # mov eax, 60 (exit)
    "0f05"            # syscall
) + path
base, head = 0x400000, 64 + 56
# ELF-64, little-endian, an executable for x86-64 of one segment that is read and run.
ident = b"\x7fELF\x02\x01\x01" + bytes(9)
header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
size = head + len(code)
segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
with open(sys.argv[1], "wb") as file:
    file.write(ident + header + segment + code)
PYTHON
    chmod 755 "$1"
}
