#!/usr/bin/env bash
# serve.sh BINARY DATA LOG FLAG...: starts `hearth serve` on the host of the
# cloud, as no one's child. Twice is harmless.
# serve.sh --pid DATA: prints the pid of the one with that data folder, if any.
set -eu

# Whoever started it, and from whichever build.
pid_of() {
    local pid arguments
    for pid in $(pgrep -x hearth || true); do
        mapfile -d '' -t arguments 2>/dev/null <"/proc/$pid/cmdline" || continue
        if [[ ${arguments[1]:-} == serve && " ${arguments[*]} " == *" --data-dir $1 "* ]]; then
            printf '%s\n' "$pid"
            return 0
        fi
    done
    return 1
}

if [[ $1 == --pid ]]; then
    pid_of "$2"
    exit
fi
binary=$1 data=$2 log=$3
shift 3
if pid_of "$data" >/dev/null; then exit 0; fi
for module in tun vhost_net kvm_amd kvm_intel; do modprobe -q "$module" 2>/dev/null || true; done
mkdir -p "$data" "$(dirname "$log")"
setsid "$binary" serve --data-dir "$data" "$@" </dev/null >>"$log" 2>&1 &
