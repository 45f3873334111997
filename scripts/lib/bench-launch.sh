#!/usr/bin/env bash
# scripts/bench launch: what a launch by the control plane costs, from the call of
# RunInstances to the guest's first instruction and to user data that runs, from cold and
# from a template, step by step, and beyond what the bare VMM costs (tests/bench/src/launch.rs). A real `hearth serve` with nftables, namespaces
# and volumes launches instances of the image micro, one after another, on a warm host.
#
# The host is a small lab that counts instructions: a millisecond below is a million of
# them, of host and guest together. Tables and the log of hearth stay in
# target/bench/launch.
#   HEARTH_BENCH_LAUNCHES   how many of each type are measured (5)
#   HEARTH_BENCH_TYPES      instance types ("t2.nano t2.micro")
#   HEARTH_BENCH_WARM       from a template or not ("no yes")
#   HEARTH_BENCH_STALL      seconds without a word until the lab counts as hung (240)
#   HEARTH_BENCH_LOG        HEARTH_LOG of hearth (info)
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=lab.sh
source "$HEARTH_ROOT/scripts/lib/lab.sh"
# shellcheck source=bench-lab.sh
source "$HEARTH_ROOT/scripts/lib/bench-lab.sh"

bench=$HEARTH_TARGET/bench/launch
release=$HEARTH_TARGET/release
read -ra types <<<"${HEARTH_BENCH_TYPES:-t2.nano t2.micro}"
key=AKIALAUNCHBENCH00000 secret=launch/bench/launch/bench/launch/bench00

need_cargo
need_packages qemu-system-x86 linux-image-amd64 kmod busybox-static iproute2 nftables xfsprogs cpio
mkdir -p "$bench"
"$HEARTH_ROOT/images/build" --if-missing micro
step "cargo: hearth, hearth-vmm, the stopwatch" \
    cargo build --release --locked -p hearth-control-plane --bins -p hearth-vmm -p hearth-bench

build_lab() {
    local tree=$bench/root version
    version=$(lab_kernel)
    version=${version#/boot/vmlinuz-}
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,dev,modules,usr/bin,usr/sbin,bench/images,etc}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    ln -s busybox "$tree/bin/sh"
    install -m 755 "$HEARTH_ROOT/tests/bench/lab-init.sh" "$tree/init"
    cp "$release"/{hearth,hearth-vmm,hearth-bench} "$tree/bench/"
    cp "$HEARTH_TARGET"/images/micro.{raw,json} "$tree/bench/images/"
    with_libraries "$tree" "$(command -v nft)" "$(command -v ip)" "$(command -v mkfs.xfs)" "$release"/hearth{,-vmm,-bench}
    # with_libraries keeps a program's folder; the lab runs them from /bench.
    rm -rf "$tree${release:?}"
    lab_modules "$tree/modules" "$version" kvm_amd tun vhost_net xfs brd veth nf_tables nft_ct nft_nat \
        nft_chain_nat nft_masq nft_fib_inet nft_reject_inet nft_limit nft_connlimit nf_conntrack_netlink
    cat >"$tree/bench/cloud.toml" <<-TOML
	[[account]]
	id = "000000000000"
	name = "bench"
	[[account.key]]
	access_key_id = "$key"
	secret_access_key = "$secret"
	TOML
    cat >"$tree/bench-run" <<-SH
	#!/bin/sh
	ip link set lo up
	hostname lab
	for warm in ${HEARTH_BENCH_WARM:-no yes}; do
	    HEARTH_LOG=${HEARTH_BENCH_LOG:-info} /bench/hearth serve --data-dir /scratch/\$warm --config /bench/cloud.toml \\
	        --images-dir /bench/images --vmm-binary /bench/hearth-vmm --terminate-grace 1 --disk-overcommit 50 --disk-reserve-mib 16 \\
	        --host-id lab --warm-templates "\$([ \$warm = no ] && echo 0 || echo 8)" >>/scratch/log 2>&1 &
	    /bench/hearth-bench launch address=127.0.0.1:8773 access-key=$key secret-key=$secret hearth=/bench/hearth \\
	        data=/scratch/\$warm warm=\$warm launches=${HEARTH_BENCH_LAUNCHES:-5}$(printf ' type=%s' "${types[@]}")
	    status=\$?
	    echo "\$status" >/scratch/status
	    [ \$status = 0 ] || break
	    kill \$!
	    wait \$!
	    /bench/hearth purge --data-dir /scratch/\$warm >>/scratch/log 2>&1
	done
	echo '=== the end, and the log'
	cat /scratch/status /scratch/log
	SH
    archive "$tree" "$bench/initrd"
}

build_lab
start=$SECONDS
# QEMU's emulated SVM now and then leaves a guest spinning for good.
for _ in 1 2 3; do
    rm -f "$bench"/{console,results,pid}
    LAB_APPEND='lsm=landlock,lockdown,yama,integrity,apparmor,bpf' \
        small_lab lab "$bench" "${HEARTH_BENCH_STALL:-240}" -cpu max -icount shift=0
    tr -d '\r' <"$bench/results" | sed '/^=== the end/,$d' >"$bench/table.md"
    tr -d '\r' <"$bench/results" | sed '0,/^=== the end/d' >"$bench/log"
    [[ ! -s $bench/log ]] || break
done
if [[ $(head -n 1 "$bench/log") != 0 ]]; then
    tail -c 3000 "$bench/console" | tr -d '\r' | tail -n 20 | sed 's/^/   lab| /' >&2
    tail -n 20 "$bench/log" | sed 's/^/   hearth| /' >&2
    die "the bench didn't reach its end"
fi
{
    printf 'Measured %s, commit %s; %s, %s. Million instructions.\n' "$(date -u +%F)" \
        "$(git -C "$HEARTH_ROOT" rev-parse --short HEAD 2>/dev/null || echo '?')" \
        "$(basename "$(lab_kernel)")" "$(qemu-system-x86_64 --version | head -n 1)"
    cat "$bench/table.md"
} >"$bench/report.md"
cat "$bench/report.md"
say "done in $(elapsed "$start"); all of it in target/bench/launch"
