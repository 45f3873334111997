#!/usr/bin/env bash
# What goes on from a template of micro draws a new seed, or boots anew: it never goes on
# with the random numbers of the others. (The initrd's own lines, in a world of stand-ins.)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
init=$root/images/micro/initrd/init
sed -n '/^new_seed() {/,/^fi$/p' "$init" |
    sed "s|/dev/hwrng|$place/hwrng|g; s|/dev/urandom|$place/urandom|g; s|/seed\b|$place/seed|g" >"$place/lines"
grep -q "$place/hwrng" "$place/lines"
grep -q "$place/urandom" "$place/lines"
grep -q "reboot -f" "$place/lines"

# What becomes of a machine whose reseed ends with this status: the disk is there at the
# second look.
goes_on() {
    cat >"$place/script" <<INIT
hold=yes
looks=0
has_disk() { looks=\$((looks + 1)); [ \$looks -gt 1 ]; }
usleep() { :; }
reseed() { return $1; }
reboot() { echo "reboot \$*"; exit; }
poweroff() { echo "it went on"; exit; }
. $place/lines
echo booted
INIT
    rm -f "$place/urandom"
    [[ ${2:-} != unwritable ]] || mkdir "$place/urandom"
    busybox sh "$place/script"
    [[ ${2:-} != unwritable ]] || rmdir "$place/urandom"
}

anew=$'hearth.hold: held\ninitrd: no new seed for random numbers: it boots anew\nreboot -f'
head -c 4096 /dev/urandom >"$place/hwrng"
[[ $(goes_on 0) == $'hearth.hold: held\nbooted' ]]
cmp -n 1024 "$place/hwrng" "$place/urandom"
[[ $(stat -c %s "$place/urandom") == 1024 && ! -e $place/seed ]]
[[ $(goes_on 1) == "$anew" ]]
[[ $(goes_on 0 unwritable 2>/dev/null) == "$anew" ]]
head -c 1023 /dev/urandom >"$place/hwrng"
[[ $(goes_on 0) == "$anew" ]]
: >"$place/hwrng"
[[ $(goes_on 0) == "$anew" ]]
rm "$place/hwrng" "$place/seed"
[[ $(goes_on 0) == "$anew" ]]
