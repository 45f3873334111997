# shellcheck shell=bash
# The lab: a live copy of this machine as a true KVM host, in QEMU without
# KVM's help. virtme-ng boots Debian's stock kernel with this machine's root
# (read-only over 9p, writable overlays above); `kvm_amd` runs on QEMU's
# emulated SVM. We reach in with ssh over a loopback port.
#
# A lab's folder holds: qemu.pid, port, key, connection, console.log, data.img.
# Sourced after common.sh.

# shellcheck disable=SC2034 # for the scripts that source this
LAB_SHARE=$HEARTH_TARGET/share
LAB_LOGS=$HEARTH_TARGET/test-logs

lab_install() {
    # dropbear-bin has the server's binary without a service: unlike
    # openssh-server it starts nothing on this machine itself.
    need_packages qemu-system-x86 qemu-system-common linux-image-amd64 kmod udev busybox-static iproute2 iputils-ping nftables \
        dropbear-bin openssh-client xfsprogs util-linux procps curl
    need_venv
}

# The newest stock kernel that has its modules. Not the cloud flavour: it
# lacks 9p.
lab_kernel() {
    local kernel version
    while read -r kernel; do
        version=${kernel#/boot/vmlinuz-}
        if [[ $version != *cloud* && -d /lib/modules/$version ]]; then
            printf '%s\n' "$kernel"
            return 0
        fi
    done < <(find /boot -maxdepth 1 -name 'vmlinuz-*-amd64' | sort -Vr)
    die "no stock kernel in /boot; run: apt-get install linux-image-amd64"
}

# In MiB: half of what is available, between 2 and 8 GiB.
lab_memory() {
    local available
    available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
    local memory=$((available / 2))
    ((memory > 8192)) && memory=8192
    ((memory < 2048)) && memory=2048
    printf '%s\n' "${HEARTH_LAB_MEMORY:-$memory}"
}

lab_free_port() {
    "$HEARTH_VENV/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# The rate of this machine's time stamp counter, which is the lab's too, in kHz.
lab_tsc_khz() {
    "$HEARTH_VENV/bin/python" - <<'PYTHON'
import ctypes, mmap, time

code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl rdx, 32; or rax, rdx; ret
stamp = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))


def both():
    # Of many, the pair that was read in one go.
    pairs = ((time.monotonic_ns(), stamp(), time.monotonic_ns()) for _ in range(1000))
    before, cycles, after = min(pairs, key=lambda pair: pair[2] - pair[0])
    return (before + after) / 2, cycles


(start, first), _, (end, last) = both(), time.sleep(0.2), both()
print(round((last - first) * 1e6 / (end - start)))
PYTHON
}

lab_pid() {
    local pid
    pid=$(cat "$1/qemu.pid" 2>/dev/null) || return 1
    # The number may have been used again by another process.
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$1/qemu.pid" || return 1
    printf '%s\n' "$pid"
}

lab_running() { lab_pid "$1" >/dev/null; }

# lab_boot DIR SECONDS FORWARD...: boots a lab and waits until it can be
# reached. It ends by itself after SECONDS (0: never). FORWARD are TCP ports
# forwarded from this machine's loopback to the same port in the lab.
lab_boot() {
    local dir=$1 limit=$2 port forward='' start=$SECONDS kernel tsc shown=0 last=$HEARTH_TARGET/lab/booted-in
    shift 2
    say "== lab: booting$([[ ! -f $last ]] || printf ' (%ss the last time)' "$(<"$last")")"
    kernel=$(lab_kernel)
    tsc=$(lab_tsc_khz)
    mkdir -p "$dir" "$LAB_SHARE" "$LAB_LOGS"
    lab_unshare_connection "$dir"
    rm -f "$dir/qemu.pid" "$dir/key" "$dir/key.pub"
    ssh-keygen -q -t ed25519 -N '' -C hearth-lab -f "$dir/key"
    if [[ ! -f $dir/data.img ]]; then
        truncate -s "${HEARTH_LAB_DISK:-24G}" "$dir/data.img.new"
        mkfs.xfs -q -m reflink=1 -L hearth "$dir/data.img.new"
        mv "$dir/data.img.new" "$dir/data.img"
    fi
    port=$(lab_free_port)
    printf '%s\n' "$port" >"$dir/port"
    for p in "$@"; do forward+=",hostfwd=tcp:127.0.0.1:$p-:$p"; done

    local opts="-cpu max -pidfile $dir/qemu.pid"
    # No way out: only what is forwarded comes in.
    opts+=" -netdev user,id=lab,restrict=on,hostfwd=tcp:127.0.0.1:$port-:22$forward"
    opts+=" -device virtio-net-pci,netdev=lab"
    # The lab's data can be lost with the lab: no flush needs to reach a disk.
    opts+=" -drive if=none,id=data,file=$dir/data.img,format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap"
    opts+=" -device virtio-blk-pci,drive=data,serial=hearth-data"
    # Programs and libraries a second time, for a mount that caches: virtme-ng's
    # root asks this machine for each page, at every exec.
    opts+=" -fsdev local,id=usr,path=/usr,security_model=none,readonly=on,multidevs=remap"
    opts+=" -device virtio-9p-pci,fsdev=usr,mount_tag=hearth-usr"

    # One processor. With two, QEMU's emulation of SVM hands an interrupt to
    # code that has them off (GIF=0): a busy guest with two vCPUs takes a triple
    # fault or this lab's own kernel runs over its stack, within a minute or two.
    # With one, the same guests run on. Guests may have several vCPUs on it.
    # lsm=: with Landlock, a layer of each VMM's sandbox.
    # tsc_early_khz=: on a busy machine the kernel's own measure of it, against QEMU's
    # timers, was seen to be a quarter of what it is. All its clocks, and its guests', then
    # run four times too fast, and whatever has a deadline misses it.
    local vng=("$HEARTH_VENV/bin/vng" -v -r "$kernel" --disable-kvm --force-9p --cpus 1
        --memory "$(lab_memory)M" --user root --name hearth-lab
        --cwd /
        --rwdir="$LAB_SHARE" --rwdir="$LAB_LOGS"
        --append "tsc=reliable clocksource=tsc tsc_early_khz=$tsc mitigations=off nowatchdog kvm_amd.vgif=0 kvm_amd.vls=0 lsm=landlock,lockdown,yama,integrity,apparmor,bpf"
        --qemu-opts="$opts"
        -- "$HEARTH_ROOT/scripts/lib/lab-guest.sh '$(<"$dir/key.pub")' $((limit > 0 ? limit + 120 : 0))")
    local guard=()
    ((limit > 0)) && guard=(timeout -k 10 $((limit + 180)))
    PATH=$HEARTH_VENV/bin:$PATH setsid "${guard[@]}" "${vng[@]}" </dev/null >"$dir/console.log" 2>&1 &
    local starter=$!

    local deadline=$((SECONDS + ${HEARTH_LAB_BOOT_TIMEOUT:-300}))
    until lab_ssh "$dir" true </dev/null >/dev/null 2>&1; do
        if ! kill -0 "$starter" 2>/dev/null; then
            say "the lab ended while booting:"
            lab_last_lines "$dir"
            return 1
        fi
        if ((SECONDS > deadline)); then
            say "the lab can't be reached after $(elapsed "$start"):"
            lab_last_lines "$dir"
            lab_end "$dir"
            return 1
        fi
        if ((SECONDS - start - shown >= 10)); then
            shown=$((SECONDS - start))
            say "   … $(elapsed "$start"): $(lab_doing "$dir")"
        fi
        sleep 0.5
    done
    disown "$starter"
    lab_share_connection "$dir"
    printf '%s\n' "$((SECONDS - start))" >"$last"
    say "   up in $(elapsed "$start")"
}

# One connection that every later command goes through: an ssh handshake takes
# the emulated machine longer than most commands. It ends with the lab; without
# it each command makes its own. Its socket's path must be short (sun_path).
lab_share_connection() {
    local dir=$1 folder
    folder=$(mktemp -d /tmp/hearth-lab.XXXXXX)
    printf '%s\n' "$folder" >"$dir/connection"
    lab_ssh "$dir" -M -N -f </dev/null >/dev/null 2>&1 || true
}

lab_unshare_connection() {
    local dir=$1 folder
    [[ -f $dir/connection ]] || return 0
    folder=$(<"$dir/connection")
    lab_ssh "$dir" -Oexit </dev/null >/dev/null 2>&1 || true
    [[ $folder != /tmp/hearth-lab.* ]] || rm -rf "$folder"
    rm -f "$dir/connection"
}

# What a booting lab does, in a line: the newest of its console.
lab_doing() {
    local line
    line=$(tail -c 2000 "$1/console.log" 2>/dev/null | tr -d '\r' | sed 's/\x1b\[[0-9;]*[a-zA-Z]//g' | grep -a '[^ ]' | tail -n 1 | cut -c 1-100)
    printf '%s\n' "${line:-QEMU starts}"
}

lab_last_lines() {
    tail -c 6000 "$1/console.log" | tr -d '\r' | tail -n "${2:-30}" | sed 's/^/   lab| /' >&2
}

# lab_ssh DIR [SSH-OPTIONS...] [CMD...]
lab_ssh() {
    local dir=$1 options=()
    shift
    [[ ! -f $dir/connection ]] || options=(-S "$(<"$dir/connection")/s")
    while [[ ${1:-} == -* ]]; do
        options+=("$1")
        shift
    done
    ssh -q "${options[@]}" -F /dev/null -i "$dir/key" -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null -o BatchMode=yes -o ConnectTimeout=5 \
        -o ServerAliveInterval=30 -o ServerAliveCountMax=20 \
        -p "$(<"$dir/port")" root@127.0.0.1 "$@"
}

# lab_run DIR SECONDS CMD...: runs a command in a running lab, in the present
# folder and with the variables that matter. One argument is a shell's line,
# several are a command and its arguments. Status 124: the deadline.
#
# All of it goes in a file that only its owner can read, and that the lab sees as
# this machine does: credentials are among it, and everybody can read the command
# lines of processes.
lab_run() {
    local dir=$1 limit=$2 name command rc=0 tty=-T file
    shift 2
    if (($# == 1)); then command=$1; else printf -v command '%q ' "$@"; fi
    file=$(mktemp "$dir/run.XXXXXX")
    {
        while read -r name; do
            printf 'export %s=%q\n' "$name" "${!name}"
        done < <(compgen -e | grep -E '^(HEARTH_|AWS_|RUST_|CARGO_MANIFEST_DIR$|PATH$|CI$|LANG$|TERM$)' || true)
        printf 'cd %q && %s\n' "$PWD" "$command"
    } >"$file"
    [[ -t 0 && -t 1 ]] && tty=-t
    timeout --foreground -k 10 "$limit" bash -c 'source "$1/scripts/lib/common.sh"; source "$1/scripts/lib/lab.sh"; shift; lab_ssh "$@"' \
        lab "$HEARTH_ROOT" "$dir" "$tty" "exec bash $(printf %q "$file")" || rc=$?
    rm -f "$file"
    return "$rc"
}

# Ends a lab: asks it to, then kills it. Only ever the process whose command
# line names this lab's own pid file.
lab_end() {
    local dir=$1 pid i
    if ! pid=$(lab_pid "$dir"); then
        lab_unshare_connection "$dir"
        return 0
    fi
    lab_ssh "$dir" 'sync; echo o >/proc/sysrq-trigger' </dev/null >/dev/null 2>&1 &
    local asking=$!
    for ((i = 0; i < 50; i++)); do
        lab_running "$dir" || break
        sleep 0.1
    done
    kill "$asking" 2>/dev/null || true
    wait "$asking" 2>/dev/null || true
    if lab_running "$dir"; then
        kill "$pid" 2>/dev/null || true
        sleep 1
        ! lab_running "$dir" || kill -9 "$pid" 2>/dev/null || true
    fi
    lab_unshare_connection "$dir"
    rm -f "$dir/qemu.pid"
}
