#!/usr/bin/env bash
# Where there is no Rust, need_cargo brings rustup with the pinned toolchain; a cargo
# that is new enough is left alone, and an older one isn't used. (What is fetched is a
# stand-in: nothing leaves this machine.)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
wanted=$(sed -n 's/^channel = "\(.*\)"$/\1/p' "$root/rust-toolchain.toml")
[[ $wanted =~ ^1\.[0-9]+\.[0-9]+$ ]]
grep -q "^rust-version = \"${wanted%.*}\"" "$root/Cargo.toml"

mkdir "$place/bin"
cat >"$place/bin/curl" <<'CURL'
#!/bin/sh
cat <<'INSTALLER'
echo "$*" >"$CARGO_HOME.arguments"
mkdir -p "$CARGO_HOME/bin"
for program in cargo rustup; do
    printf '#!/bin/sh\necho "%s 9.9.9 (stand-in)"\n' "$program" >"$CARGO_HOME/bin/$program"
    chmod +x "$CARGO_HOME/bin/$program"
done
INSTALLER
CURL
chmod +x "$place/bin/curl"

# Which cargo need_cargo leaves, in a world of its own.
cargo_after() {
    env -i HOME="$place/home" CARGO_HOME="$1" PATH="$2$place/bin:/usr/bin:/bin" \
        bash -c 'source "$1/scripts/lib/common.sh"; HEARTH_TARGET=$2; need_cargo >&2; command -v cargo' \
        need "$root" "$place/target" 2>"$place/log" || { cat "$place/log" >&2; return 1; }
}

[[ $(cargo_after "$place/none" '') == "$place/none/bin/cargo" ]]
grep -q -- "--default-toolchain $wanted" "$place/none.arguments"

for version in 1.63.0 "$wanted"; do
    mkdir -p "$place/debian-$version"
    printf '#!/bin/sh\necho "cargo %s"\n' "$version" >"$place/debian-$version/cargo"
    chmod +x "$place/debian-$version/cargo"
done
[[ $(cargo_after "$place/old" "$place/debian-1.63.0:") == "$place/old/bin/cargo" ]]
[[ $(cargo_after "$place/new" "$place/debian-$wanted:") == "$place/debian-$wanted/cargo" ]]
[[ ! -e $place/new ]]
