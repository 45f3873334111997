# shellcheck shell=bash
# From a folder to a bootable root disk and its manifest, without a mount or a
# loop device: mke2fs fills the file system from the folder, sfdisk writes the
# partition table around it.

# Features that the boot-file reader's ext4 crate and Debian 12's e2fsprogs
# both know; nothing newer.
EXT4_FEATURES='none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum'
# The partition starts at 1 MiB, as every partitioner has it; the second
# partition table needs 33 sectors after it.
PARTITION_OFFSET=$((1024 * 1024))

# make_disk FOLDER RAW: room for what the folder holds and DISK_SPARE_MB of
# MiB more; instances grow the file system to their volume at boot.
make_disk() {
    local folder=$1 raw=$2 used size total
    used=$(du -sm --apparent-size "$folder" | cut -f 1)
    local blocks inodes
    blocks=$(du -sm "$folder" | cut -f 1)
    inodes=$(find "$folder" | wc -l)
    ((blocks > used)) && used=$blocks
    # Inode tables, the journal and the reserve for growth.
    size=$((used + used / 16 + DISK_SPARE_MB))
    total=$((size + 2))
    rm -f "$raw"
    truncate -s "${total}M" "$raw"
    printf 'label: gpt\nunit: sectors\nfirst-lba: 34\nstart=%d, size=%d, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=%s, name=root\n' \
        $((PARTITION_OFFSET / 512)) $((size * 2048)) "$PART_UUID" |
        sfdisk --no-reread --no-tell-kernel "$raw"
    mke2fs -q -F -t ext4 -b 4096 -I 256 -m 1 -O "$EXT4_FEATURES" -J size="$DISK_JOURNAL_MB" \
        -U "$IMAGE_UUID" -L root -N $((inodes + inodes / 4 + 4096)) \
        -E "offset=$PARTITION_OFFSET,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,resize=268435456" \
        -d "$folder" "$raw" "${size}M"
    # What mke2fs wrote as zeroes needs no room on the host.
    fallocate --dig-holes "$raw"
}

disk_words() { du -h "$1" | cut -f 1; }

# make_manifest NAME RAW OUT: with the recipe's variables.
make_manifest() {
    local name=$1 raw=$2 out=$3
    python3 - "$name" "$raw" "$out" <<'PYTHON'
import datetime, hashlib, json, os, sys

name, raw, out = sys.argv[1:]
digest = hashlib.sha256()
with open(raw, "rb") as disk:
    while block := disk.read(1 << 20):
        digest.update(block)
env = os.environ
manifest = {
    "name": name,
    "description": env["IMAGE_DESCRIPTION"],
    "architecture": "x86_64",
    "root_device_name": "/dev/xvda",
    "default_user": env["IMAGE_DEFAULT_USER"],
    "disk": os.path.basename(raw),
    "disk_size": os.path.getsize(raw),
    "sha256": digest.hexdigest(),
    "created": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "boot": {
        "method": "linux",
        "partition": 1,
        "kernel": "/vmlinuz",
        "initrd": "/initrd.img",
        "cmdline": f"root=UUID={env['IMAGE_UUID']} {env['IMAGE_CMDLINE']}",
    },
}
if env.get("IMAGE_WARM"):
    manifest["warm"] = True
with open(out, "w") as file:
    json.dump(manifest, file, indent=2)
    file.write("\n")
PYTHON
}

# resolve MMDEBSTRAP-ARGUMENTS...: the packages with their versions that such
# a call would install now.
resolve() {
    # mmdebstrap says everything on standard error.
    mmdebstrap --simulate --verbose "$@" bookworm /dev/null "${SOURCES[@]}" 2>&1 | grep '^Inst ' | awk '{ print $2, $3 }' | sort
}
