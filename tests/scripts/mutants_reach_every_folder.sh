#!/usr/bin/env bash
# cargo-mutants gets a room's files as patterns, for those of the folders below too. It
# is a stand-in here: nothing is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
version=$(sed -n 's/^MUTANTS_VERSION=//p' scripts/mutants)
cat >"$work/bin/cargo" <<CARGO
#!/bin/sh
[ "\$*" = 'mutants --version' ] && echo 'cargo-mutants $version' && exit
printf '%s\n' "\$@" >>'$work/seen'
CARGO
chmod +x "$work/bin/cargo"
CARGO_HOME=$work PATH=$work/bin:$PATH scripts/mutants queues registers -- --list >/dev/null
for pattern in 'vmm/src/virtio/**' 'vmm/src/pci/**' vmm/src/smbios.rs; do
    grep -qxF "$pattern" "$work/seen" || { echo "no $pattern in: $(cat "$work/seen")" >&2; exit 1; }
done
echo ok
