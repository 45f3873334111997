#!/usr/bin/env bash
# Runs as root inside the lab, once it has booted: makes it a KVM host that
# can be reached, then waits. `lab-guest.sh PUBLIC_KEY SECONDS`.
set -u
key=$1
limit=$2
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin

# Cached: nobody changes /usr while a lab runs.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro hearth-usr /usr ||
    echo "lab: no cached /usr; commands will be slow"

for module in virtio_net virtio_blk xfs tun vhost_net loop veth nf_tables nft_ct nft_nat nft_chain_nat \
    nft_masq nft_fib_inet nft_reject_inet nf_conntrack nf_conntrack_netlink br_netfilter overlay; do
    modprobe -q "$module" || echo "lab: no module $module"
done
modprobe -q kvm_amd || modprobe -q kvm_intel || echo "lab: no KVM"

ip link set lo up
for nic in /sys/class/net/*; do
    nic=${nic##*/}
    [[ $nic == lo ]] && continue
    [[ -e /sys/class/net/$nic/device ]] || continue
    ip link set "$nic" up
    ip addr add 10.0.2.15/24 dev "$nic"
done

# Every controller for the groups below the root.
sed 's/\(^\| \)/ +/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control

# The live root's home is read-only: cover it, as virtme-ng covers /etc.
mkdir -p /run/tmp/root-upper /run/tmp/root-work
mount -t overlay -o lowerdir=/root,upperdir=/run/tmp/root-upper,workdir=/run/tmp/root-work lab-root /root
# bash reads it for each command that comes by ssh; a developer's takes seconds.
: >/root/.bashrc
mkdir -p /root/.ssh
mount -t tmpfs -o mode=700 lab-ssh /root/.ssh
printf '%s\n' "$key" >/root/.ssh/authorized_keys
chmod 700 /root
chmod 600 /root/.ssh/authorized_keys

mkdir -p /var/lib/hearth
for disk in /sys/block/vd*; do
    [[ $(cat "$disk/serial" 2>/dev/null) == hearth-data ]] || continue
    mount -t xfs -o discard "/dev/${disk##*/}" /var/lib/hearth || echo "lab: can't mount the data disk"
done

dropbearkey -t ed25519 -f /run/lab-host-key >/dev/null 2>&1
echo "lab: ready"
dropbear -r /run/lab-host-key -s -p 22 -E
# A one-shot lab whose owner died ends itself.
if ((limit > 0)); then sleep "$limit"; else sleep infinity; fi
