#!/bin/busybox sh
# shellcheck shell=dash
# Init of the lab that scripts/bench boots: everything lies in memory, nothing
# else runs, so that two runs do the same. Makes it a KVM host, with an XFS on
# a RAM disk as the place of the guest's disk, runs /bench-run and powers off.
# Figures go to the second serial port, words to the first.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /scratch /root
/bin/busybox --install -s /usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    # QEMU's virtual GIF lets interrupts through that it should hold back
    # (scripts/lib/lab.sh).
    case $module in
        kvm-amd.ko) set -- vgif=0 vls=0 ;;
        *) set -- ;;
    esac
    insmod "/modules/$module" "$@" || echo "bench: no module $module"
done </modules/order
insmod /modules/brd.ko rd_nr=1 rd_size=786432
stty -F /dev/ttyS1 raw
mkfs.xfs -q -f -m reflink=1 /dev/ram0
mkdir -p /new
mount -t xfs /dev/ram0 /new || poweroff -f
[ -c /dev/kvm ] || echo "bench: no /dev/kvm"
# The VMMs and the guest's disk lie on the XFS, as on a true host: programs
# that are mapped from the initramfs would count as dirty memory, and a disk
# there knows no non-blocking read.
cp -a /bin /bench /bench-run /lib64 /lib /usr /new/
mkdir -p /new/proc /new/sys /new/dev /new/tmp /new/run /new/scratch /new/etc
sync
for folder in proc sys dev; do mount --bind "/$folder" "/new/$folder"; done
mount -t tracefs trace /new/sys/kernel/tracing || echo "bench: no tracing"
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
unshare -n chroot /new /bin/sh /bench-run >/dev/ttyS1
echo "bench: over, status $?"
poweroff -f
