#!/usr/bin/env bash
# `scripts/down --purge` of one cloud takes that cloud's things and no other's.
# The clouds are markers: no hearth serves, and nothing boots.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[[ $(id -u) == 0 ]] || {
    echo "SKIPPED: needs root"
    exit 0
}
# A network and a /run of its own, so that a cloud that is here can't come to harm.
if [[ ${1:-} != inside ]]; then
    exec unshare --net --mount --propagation private "${BASH_SOURCE[0]}" inside
fi
ip link set lo up
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib

id=$$
mine=(--name "spare-$id-a") his=(--name "spare-$id-b")
unset HEARTH_NAME HEARTH_DATA_DIR HEARTH_PUBLIC_POOL HEARTH_PORT "${!AWS_@}"
trap 'kill "${sleeper:-}" 2>/dev/null || true' EXIT
fail() {
    printf 'FAILED: %s\n' "$*"
    exit 1
}

# cloud LABEL: what a hearth of that label leaves on its host.
cloud() {
    mkdir -p "/var/lib/$1" "/run/$1"
    touch "/var/lib/$1/"{lock,hearth.db,credentials.json}
    ip netns add "$1-vpc-0123456789abcdef0"
    nft add table inet "$1"
}
# No `… | grep -q` here: it leaves at the first match, and under pipefail the writer
# that still had a line to write then fails the pipe.
has_namespace() { ip netns exec "$1-vpc-0123456789abcdef0" true &>/dev/null; }
label_a=hearth-${mine[1]} label_b=hearth-${his[1]}
cloud hearth
cloud "$label_a"
cloud "$label_b"
ip link add igw-0123456789a type veth peer name igw-peer
# Something that runs as another cloud's control plane.
cp /bin/sleep /run/hearth/hearth
/run/hearth/hearth 1000 &
sleeper=$!

scripts/down "${mine[@]}" --purge

[[ ! -e /var/lib/$label_a && ! -e /run/$label_a ]] || fail "files of the purged cloud are left"
! has_namespace "$label_a" || fail "a namespace of the purged cloud is left"
! nft list table inet "$label_a" &>/dev/null || fail "a table of the purged cloud is left"
for label in hearth "$label_b"; do
    for file in lock hearth.db credentials.json; do
        [[ -e /var/lib/$label/$file ]] || fail "$label lost its $file"
    done
    [[ -d /run/$label ]] || fail "$label lost its folder in /run"
    has_namespace "$label" || fail "$label lost its namespace"
    nft list table inet "$label" >/dev/null || fail "$label lost its nft table"
done
ip link show igw-0123456789a >/dev/null || fail "another cloud lost its link"
kill -0 "$sleeper" || fail "another cloud's process was ended"
echo ok
