# shellcheck shell=bash disable=SC2034 # read by images/build
# micro: a few MB of user space that do what a cloud image must. busybox,
# dropbear, curl, resize2fs and sfdisk, Debian's cloud kernel and the few modules
# that a virtual machine of ours needs.

export IMAGE_DESCRIPTION='Hearth micro: busybox, dropbear and curl on the Debian 12 cloud kernel'
export IMAGE_DEFAULT_USER=ec2-user
# No self-tests and no bounce buffers: README.md says why, and how to have them.
export IMAGE_CMDLINE='rw console=ttyS0,115200 panic=10 quiet loglevel=4 cryptomgr.notests swiotlb=noforce'
DISK_SPARE_MB=24
DISK_JOURNAL_MB=4

PACKAGES=linux-image-cloud-amd64,busybox-static,dropbear-bin,curl,ca-certificates,e2fsprogs,fdisk,util-linux
# The initrd goes on from a template as an instance of its own.
export IMAGE_WARM=yes
# Modules that the initrd needs to reach the root and those that the next boot script
# would load, so that a template has them; and those of the root. What they depend on is
# added.
INITRD_MODULES=(virtio_pci virtio_blk virtio_net virtio-rng button evdev)
ROOT_MODULES=(virtio_pci virtio_blk virtio_net virtio-rng button evdev loop)

recipe_packages() { resolve --variant=extract --include="$PACKAGES"; }

recipe_root() {
    local root=$1 debian=$WORK/debian version
    # Unpacked only: no maintainer script runs.
    mmdebstrap --variant=extract --include="$PACKAGES" bookworm "$debian" "${SOURCES[@]}"
    version=$(basename "$debian"/boot/vmlinuz-*-cloud-amd64)
    version=${version#vmlinuz-}

    mkdir -p "$root"/{bin,boot,dev,etc,home,lib,lib64,mnt,proc,root,run,sbin,sys,tmp,usr/{bin,sbin,lib},var/{lib/micro,log,www}}
    chmod 1777 "$root/tmp"
    chmod 700 "$root/root"
    cp -a "$IMAGES/micro/root/." "$root/"
    chown -R 0:0 "$root"

    install -m 755 "$debian/bin/busybox" "$root/bin/busybox"
    # Its shell prefers its applets to whatever the PATH has: under this name it has
    # none, and ours is found (root/usr/bin/wget says why).
    LC_ALL=C sed -i 's/\x00wget\x00/\x00wgeT\x00/' "$root/bin/busybox"
    local applet
    for applet in $("$debian/bin/busybox" --list-full); do
        # Nothing here may stand in the place of the true tool.
        case $applet in usr/bin/dropbear* | sbin/sfdisk | sbin/resize2fs | usr/bin/partx | */sudo) continue ;; esac
        mkdir -p "$root/$(dirname "$applet")"
        [[ -e $root/$applet || -L $root/$applet ]] || ln -s /bin/busybox "$root/$applet"
    done
    local program
    for program in usr/sbin/dropbear usr/bin/dropbearkey usr/bin/curl sbin/resize2fs sbin/sfdisk usr/bin/partx; do
        install -D -m 755 "$debian/$program" "$root/$program"
        copy_libraries "$debian" "$root" "$debian/$program"
    done
    [[ $(chroot "$root" /bin/sh -c 'wget --help' 2>&1 || :) == "usage: wget"* ]] ||
        die "the image's wget is not ours"
    # What ca-certificates' own script does with them at its installation.
    mkdir -p "$root/etc/ssl/certs"
    cat "$debian"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
    # `sudo` for the wheel group: this copy of busybox is setuid, and only
    # members may execute it. The default user is one.
    install -d -m 755 "$root/usr/lib/wheel"
    install -o 0 -g 10 -m 4750 "$debian/bin/busybox" "$root/usr/lib/wheel/su"
    install -d -o 1000 -g 1000 -m 755 "$root/home/ec2-user"
    chmod 640 "$root/etc/shadow"

    install -m 644 "$debian/boot/vmlinuz-$version" "$root/boot/vmlinuz-$version"
    ln -s "boot/vmlinuz-$version" "$root/vmlinuz"
    copy_modules "$debian" "$root" "$version" "${ROOT_MODULES[@]}"
    make_initrd "$debian" "$root/boot/initrd.img-$version" "$version"
    ln -s "boot/initrd.img-$version" "$root/initrd.img"
    echo "user space: $(du -sh --exclude=boot --exclude=modules "$root" | cut -f 1), all: $(du -sh "$root" | cut -f 1)"
}

# copy_libraries FROM TO ELF: what an ELF file needs, and what that needs.
copy_libraries() {
    local from=$1 to=$2 elf=$3 name found
    install -D -m 755 "$(readlink -f "$from/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" || true)" \
        "$to/lib64/ld-linux-x86-64.so.2"
    while read -r name; do
        [[ -e $to/lib/$name || $name == ld-linux* ]] && continue
        found=$(find "$from/lib/x86_64-linux-gnu" "$from/usr/lib/x86_64-linux-gnu" -maxdepth 1 -name "$name" 2>/dev/null | head -n 1)
        [[ -n $found ]] || die "no $name for $elf"
        install -D -m 755 "$(readlink -f "$found")" "$to/lib/$name"
        copy_libraries "$from" "$to" "$found"
    done < <(readelf -d "$elf" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
}

# copy_modules FROM TO VERSION MODULE...: with their dependencies, and the
# index that modprobe reads.
copy_modules() {
    local from=$1 to=$2 version=$3 path
    shift 3
    depmod -b "$from" "$version"
    for module in "$@"; do
        modprobe -d "$from" -S "$version" --show-depends "$module" | sed -n 's/^insmod //p'
    done | sort -u | while read -r path; do
        install -D -m 644 "$path" "$to/lib/modules/$version/${path#*/lib/modules/"$version"/}"
    done
    cp "$from/lib/modules/$version/"modules.{builtin,order} "$to/lib/modules/$version/"
    depmod -b "$to" "$version"
}

# Not compressed: under two megabytes, and unpacking it costs more than
# reading it.
make_initrd() {
    local debian=$1 out=$2 version=$3 initrd=$WORK/initrd
    mkdir -p "$initrd"/{bin,dev,proc,sys,mnt}
    install -m 755 "$debian/bin/busybox" "$initrd/bin/busybox"
    install -m 755 "$IMAGES/micro/initrd/init" "$initrd/init"
    make_reseed "$initrd/bin/reseed"
    need_packages musl-tools linux-libc-dev
    # Linux' own headers are Debian's: musl brings none.
    musl-gcc -std=gnu11 -Os -Wall -Wextra -Werror -static -s -idirafter /usr/include -idirafter /usr/include/x86_64-linux-gnu \
        -o "$initrd/bin/grow" "$IMAGES/micro/grow.c"
    copy_modules "$debian" "$initrd" "$version" "${INITRD_MODULES[@]}"
    (cd "$initrd" && find . -print0 | sort -z | cpio --null -o -H newc --owner=0:0 --quiet) >"$out"
    chmod 644 "$out"
}
