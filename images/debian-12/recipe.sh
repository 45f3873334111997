# shellcheck shell=bash disable=SC2034 # read by images/build
# debian-12: what Debian's own cloud images are, built here: the cloud kernel,
# systemd, cloud-init, sshd. No machine id and no host keys: each instance
# makes its own at its first boot.

export IMAGE_DESCRIPTION='Debian 12 (bookworm), cloud-init, cloud kernel'
export IMAGE_DEFAULT_USER=admin
# Names of NICs as EC2's Linux images had them; cloud-init matches by MAC.
# The kernel's warnings only: each character costs the guest an exit, and the
# log of its first seconds has them all (dmesg).
# No self-tests and no bounce buffers: README.md says why, and how to have them.
export IMAGE_CMDLINE='ro console=ttyS0,115200 net.ifnames=0 biosdevname=0 loglevel=5 cryptomgr.notests swiotlb=noforce'
DISK_SPARE_MB=160
DISK_JOURNAL_MB=32

PACKAGES=linux-image-cloud-amd64,initramfs-tools,lz4,systemd-sysv,dbus,udev,cloud-init,cloud-guest-utils,openssh-server,systemd-resolved,iproute2,sudo,curl,ca-certificates,python3-minimal,netbase,procps,kmod,e2fsprogs,fdisk,iputils-ping,less,nano,libpam-systemd

arguments() {
    ARGUMENTS=(--variant=minbase
        --include="$PACKAGES"
        # Documentation that no one reads on a server; licences stay.
        --dpkgopt='path-exclude=/usr/share/man/*'
        --dpkgopt='path-exclude=/usr/share/locale/*'
        --dpkgopt='path-exclude=/usr/share/doc/*'
        --dpkgopt='path-include=/usr/share/doc/*/copyright'
        --aptopt='APT::Install-Recommends "false"')
}

recipe_packages() {
    arguments
    resolve "${ARGUMENTS[@]}"
}

recipe_root() {
    local root=$1
    arguments
    mmdebstrap "${ARGUMENTS[@]}" \
        --setup-hook='mkdir -p "$1/etc/initramfs-tools" && cp -r '"$IMAGES/debian-12/root/etc/initramfs-tools/."' "$1/etc/initramfs-tools/"' \
        --customize-hook="copy-in $IMAGES/debian-12/root/etc /" \
        --customize-hook='chown -R root:root "$1/etc/cloud" "$1/etc/initramfs-tools" "$1/etc/systemd"' \
        --customize-hook="$IMAGES/debian-12/customize"' "$1"' \
        bookworm "$root" "${SOURCES[@]}"
    # No check at boot: ext4 replays its journal when it is mounted, and what a
    # check would find no one is there to answer.
    printf 'UUID=%s / ext4 rw,discard,errors=remount-ro 0 0\n' "$IMAGE_UUID" >"$root/etc/fstab"
}
