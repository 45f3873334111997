# shellcheck shell=bash
# Small functions that every script here leans on. Sourced, never run.
#
# HEARTH_ROOT is the repository; everything the scripts make lies under
# HEARTH_ROOT/target, but for what apt installs.

set -euo pipefail

HEARTH_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
export HEARTH_ROOT
HEARTH_TARGET=$HEARTH_ROOT/target
HEARTH_VENV=$HEARTH_TARGET/venv

# The Python tools, pinned: the lab, the clients and the runner of the API tests, and
# botocore's model, which is the tests' oracle.
HEARTH_PYTHON_PACKAGES=(virtme-ng==1.42 boto3==1.44.5 botocore==1.44.5 awscli==1.46.3
    pytest==9.2.0 pytest-xdist==3.8.0)

# rustup's cargo is often only in an interactive shell's PATH.
if [[ -d ${CARGO_HOME:-$HOME/.cargo}/bin ]]; then
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
fi
# A login without root's PATH lacks mke2fs, sfdisk and the like.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# elapsed SECONDS_AT_START -> "1m23s"
elapsed() {
    local s=$((SECONDS - $1))
    if ((s >= 60)); then printf '%dm%02ds' $((s / 60)) $((s % 60)); else printf '%ds' "$s"; fi
}

# step NAME COMMAND...: runs a long command with its output in a log, a line
# each 15 seconds while it runs, and one line with its time at the end. When
# it fails, the log's end is shown.
step() {
    local name=$1 start=$SECONDS log rc=0 shown=0
    shift
    mkdir -p "$HEARTH_TARGET/logs"
    log=$HEARTH_TARGET/logs/${name//[^a-zA-Z0-9]/-}.log
    printf '== %s\n' "$name" >&2
    "$@" >"$log" 2>&1 </dev/null &
    local pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.5
        if ((SECONDS - start - shown >= 15)); then
            shown=$((SECONDS - start))
            printf '   … %s: %s\n' "$(elapsed "$start")" "$(tail -c 400 "$log" | tr '\r' '\n' | grep -av '^ *$' | tail -n 1 | cut -c 1-100)" >&2
        fi
    done
    wait "$pid" || rc=$?
    if ((rc == 0)); then
        printf '   done in %s\n' "$(elapsed "$start")" >&2
    else
        printf '   FAILED in %s (status %d); the end of %s:\n' "$(elapsed "$start")" "$rc" "$log" >&2
        tail -n 40 "$log" | sed 's/^/   | /' >&2
    fi
    return "$rc"
}

# need_packages PACKAGE...: installs the Debian packages that are missing.
need_packages() {
    local missing=() package
    for package in "$@"; do
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    [[ $(id -u) == 0 ]] || die "missing Debian packages: ${missing[*]}; run: sudo apt-get install ${missing[*]}"
    step "apt: ${missing[*]}" apt_install "${missing[@]}"
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    # Several scripts may want to install at once.
    local wait=(-o DPkg::Lock::Timeout=300) try
    # The lists have a lock of their own, which that option doesn't wait for.
    for try in {1..20}; do
        apt-get "${wait[@]}" update && break
        ((try < 20)) || return 1
        sleep 3
    done
    apt-get "${wait[@]}" install -y --no-install-recommends "$@"
}

# The virtual environment of the pinned Python tools, made anew when the pins
# change. Held under a lock: two scripts at once must not both fill it.
need_venv() {
    local stamp=$HEARTH_VENV/.pins
    [[ -f $stamp && $(<"$stamp") == "${HEARTH_PYTHON_PACKAGES[*]}" ]] && return 0
    need_packages python3 python3-venv
    mkdir -p "$HEARTH_TARGET"
    step "python tools: ${HEARTH_PYTHON_PACKAGES[*]}" \
        flock "$HEARTH_TARGET/.venv.lock" bash -c '
            set -e
            venv=$1; pins=$2; shift 2
            [ "$(cat "$venv/.pins" 2>/dev/null)" = "$pins" ] && exit 0
            rm -rf "$venv"
            /usr/bin/python3 -m venv "$venv" || python3 -m venv "$venv"
            "$venv/bin/pip" install --disable-pip-version-check "$@"
            printf %s "$pins" >"$venv/.pins"
        ' venv "$HEARTH_VENV" "${HEARTH_PYTHON_PACKAGES[*]}" "${HEARTH_PYTHON_PACKAGES[@]}"
}

# The Rust of rust-toolchain.toml. rustup brings it, and is itself installed where
# there is none: Debian 12's own cargo is 1.63. Another cargo that is new enough, as a
# newer Debian's, will do.
need_cargo() {
    local wanted
    need_packages gcc libc6-dev
    wanted=$(sed -n 's/^channel = "\(.*\)"$/\1/p' "$HEARTH_ROOT/rust-toolchain.toml")
    if ! command -v rustup >/dev/null; then
        if command -v cargo >/dev/null &&
            printf '%s\n%s\n' "$wanted" "$(cargo --version | cut -d ' ' -f 2)" | sort -VC; then
            return 0
        fi
        need_packages curl ca-certificates
        step "rustup, with Rust $wanted" install_rustup "$wanted"
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    # In this folder rustup runs the one that the file names.
    if ! (cd "$HEARTH_ROOT" && cargo --version >/dev/null 2>&1); then
        step "Rust $wanted" rustup toolchain install "$wanted" --profile minimal --component rustfmt --component clippy
    fi
}

# https://rust-lang.org/tools/install
install_rustup() {
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        sh -s -- -y --no-modify-path --profile minimal --default-toolchain "$1" --component rustfmt --component clippy
}
