// grow FOLDER: lets the partition of the ext4 file system that is mounted at FOLDER, and
// that file system, fill a disk that is larger than the image was. Prints its new size, or
// nothing where it hasn't grown. For the initramfs, which has no libraries and shall hold
// little.
//
// sfdisk, partx and resize2fs do the same, and cost a first boot a tenth of its
// instructions: they and their libraries come off a disk that nothing was read from yet.
//
// The table is a GPT: UEFI 2.10, 5.3. What isn't as expected is left as it is.

#include <fcntl.h>
#include <inttypes.h>
#include <linux/blkpg.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

// Linux' fs/ext4/ext4.h: the new size in blocks.
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)
#define EXT4_SUPER_MAGIC 0xef53

// A table is its entries and their header.
enum { SECTOR = 512, ENTRIES = 128, TABLE = 1 + ENTRIES * 128 / SECTOR };
// In an MBR's first partition: its type, that of what protects a GPT, and its sectors.
enum { MBR_TYPE = 0x1c2, MBR_PROTECTIVE = 0xee, MBR_SECTORS = 0x1ca };
// The second table and an alignment of a MiB may remain behind the partition.
#define WORTH 8192

struct header {
    char signature[8];
    uint32_t revision, size, crc, reserved;
    uint64_t here, other, first_usable, last_usable;
    uint8_t disk[16];
    uint64_t entries;
    uint32_t count, entry_size, entries_crc;
} __attribute__((packed));

struct entry {
    uint8_t type[16], id[16];
    uint64_t first, last, attributes;
    uint8_t name[72];
};

// The disk's first sectors: the protective MBR, a header's sector and the entries.
struct table {
    uint8_t mbr[SECTOR];
    union {
        struct header header;
        uint8_t sector[SECTOR];
    };
    struct entry entries[ENTRIES];
};
_Static_assert(sizeof(struct header) == 92, "as the specification has it");
_Static_assert(sizeof(struct table) == (1 + TABLE) * SECTOR, "nothing between the two");

__attribute__((noreturn, format(printf, 1, 2))) static void give_up(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("grow: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

// CRC-32 of IEEE 802.3, as gzip has it.
static uint32_t crc32(const void *data, size_t length)
{
    static uint32_t of[256];
    for (uint32_t n = 0; n < 256 && !of[255]; n++) {
        of[n] = n;
        for (int bit = 0; bit < 8; bit++)
            of[n] = of[n] >> 1 ^ (of[n] & 1 ? 0xedb88320 : 0);
    }
    uint32_t crc = ~0u;
    for (const uint8_t *byte = data; length--; byte++)
        crc = crc >> 8 ^ of[(crc ^ *byte) & 255];
    return ~crc;
}

static uint32_t header_crc(struct header header)
{
    header.crc = 0;
    return crc32(&header, sizeof header);
}

// The number in a file of the folder of a block device in sysfs.
static uint64_t number(const char *device, const char *file)
{
    char path[128];
    uint64_t value;
    snprintf(path, sizeof path, "/sys/dev/block/%s/%s", device, file);
    FILE *of = fopen(path, "re");
    if (!of || fscanf(of, "%" SCNu64, &value) != 1)
        give_up("no number in %s", path);
    fclose(of);
    return value;
}

static void put(int disk, const void *data, size_t length, uint64_t sector)
{
    if (pwrite(disk, data, length, (off_t)(sector * SECTOR)) != (ssize_t)length)
        give_up("writing at sector %" PRIu64 ": %m", sector);
}

// Gives the partition the rest of the disk. Returns its new end.
static uint64_t move_end(int disk, uint64_t sectors, uint64_t start)
{
    static struct table table;
    struct header *header = &table.header;
    struct entry *ours = NULL;
    if (pread(disk, &table, sizeof table, 0) != sizeof table)
        give_up("reading the partition table: %m");
    if (memcmp(header->signature, "EFI PART", 8) || header->size != sizeof *header ||
        header->crc != header_crc(*header) || header->here != 1 || header->entries != 2 ||
        header->count != ENTRIES || header->entry_size != sizeof(struct entry) ||
        header->entries_crc != crc32(table.entries, sizeof table.entries))
        give_up("no partition table as our images have it");
    for (struct entry *entry = table.entries; entry < table.entries + ENTRIES; entry++)
        if (entry->first == start)
            ours = entry;
        else if (entry->first > start)
            give_up("there is a partition behind it");
    if (!ours)
        give_up("no entry for the partition at sector %" PRIu64, start);

    // The second table is at the end: entries, then their header.
    header->last_usable = sectors - TABLE - 1;
    ours->last = header->last_usable;
    header->entries_crc = crc32(table.entries, sizeof table.entries);
    struct table second = table;
    second.header.here = sectors - 1;
    second.header.other = 1;
    second.header.entries = sectors - TABLE;
    second.header.crc = header_crc(second.header);
    put(disk, second.entries, sizeof second.entries, sectors - TABLE);
    put(disk, second.sector, SECTOR, sectors - 1);
    // It stands before the first, at the other end, says that it does.
    if (fsync(disk))
        give_up("writing the second partition table: %m");
    header->other = sectors - 1;
    header->crc = header_crc(*header);
    uint32_t protected = sectors > UINT32_MAX ? UINT32_MAX : (uint32_t)(sectors - 1);
    if (table.mbr[MBR_TYPE] == MBR_PROTECTIVE)
        memcpy(&table.mbr[MBR_SECTORS], &protected, sizeof protected);
    put(disk, &table, sizeof table, 0);
    if (fsync(disk))
        give_up("writing the partition table: %m");
    return ours->last + 1;
}

int main(int count, char **arguments)
{
    struct stat root;
    struct statfs before, after;
    char part[32], path[64], link[256], whole[48];
    if (count != 2)
        give_up("usage: grow FOLDER");
    int folder = open(arguments[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 || fstat(folder, &root) || fstatfs(folder, &before))
        give_up("%s: %m", arguments[1]);
    snprintf(part, sizeof part, "%u:%u", major(root.st_dev), minor(root.st_dev));
    snprintf(path, sizeof path, "/sys/dev/block/%s/partition", part);
    if (before.f_type != EXT4_SUPER_MAGIC || access(path, F_OK))
        return 0;

    // The link of a partition is …/DISK/PART.
    snprintf(path, sizeof path, "/sys/dev/block/%s", part);
    ssize_t length = readlink(path, link, sizeof link - 1);
    if (length < 0)
        give_up("%s: %m", path);
    link[length] = 0;
    *strrchr(link, '/') = 0;
    snprintf(path, sizeof path, "/dev/%.32s", strrchr(link, '/') + 1);
    snprintf(whole, sizeof whole, "%s/..", part);
    uint64_t start = number(part, "start"), size = number(part, "size");
    uint64_t sectors = number(whole, "size");
    if (sectors > start + size + WORTH) {
        int disk = open(path, O_RDWR | O_CLOEXEC), sector;
        if (disk < 0 || ioctl(disk, BLKSSZGET, &sector))
            give_up("%s: %m", path);
        if (sector != SECTOR)
            give_up("%s: sectors of %d bytes", path, sector);
        size = move_end(disk, sectors, start) - start;
        struct blkpg_partition partition = {
            .start = (long long)(start * SECTOR),
            .length = (long long)(size * SECTOR),
            .pno = (int)number(part, "partition"),
        };
        struct blkpg_ioctl_arg resize = {
            .op = BLKPG_RESIZE_PARTITION,
            .datalen = sizeof partition,
            .data = &partition,
        };
        if (ioctl(disk, BLKPG, &resize))
            give_up("%s: the kernel's partition: %m", path);
    }

    // Whoever was ended between the two left this to do. Nothing comes of a size that it
    // has.
    uint64_t blocks = size * SECTOR / (uint64_t)before.f_bsize;
    if (ioctl(folder, EXT4_IOC_RESIZE_FS, &blocks) || fstatfs(folder, &after))
        give_up("%s: %" PRIu64 " blocks: %m", arguments[1], blocks);
    if (after.f_blocks != before.f_blocks)
        printf("%" PRIu64 " MiB\n", (uint64_t)after.f_blocks * (uint64_t)after.f_bsize >> 20);
    return 0;
}
