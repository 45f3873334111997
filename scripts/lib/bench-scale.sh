#!/usr/bin/env bash
# scripts/bench scale [--sizes N,...] [--hosts N]: what the API costs against the
# number of instances, hearth on simulated hosts beside moto's server. Table,
# figures and picture stay in target/bench/scale.
# scripts/bench soak [--minutes N] [--each N]: what hearth holds after hours of launches
# and ends. Figures stay in target/bench/soak.
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# moto's and the plot's, in an environment of their own: the tests need neither.
packages=('moto[ec2,server]==5.2.5' 'botocore==1.44.5' 'boto3==1.44.5' 'matplotlib==3.11.2')
venv=$HEARTH_TARGET/bench/scale-venv

need_cargo
need_packages python3 python3-venv
mkdir -p "$HEARTH_TARGET/bench"
if [[ $(cat "$venv/.pins" 2>/dev/null) != "${packages[*]}" ]]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    step "python: ${packages[*]}" "$venv/bin/pip" install --disable-pip-version-check "${packages[@]}"
    printf %s "${packages[*]}" >"$venv/.pins"
fi
step "cargo: hearth" cargo build --release --locked -p hearth-control-plane --bins
printf 'Measured %s, commit %s, on %s (%s CPUs, Linux %s).\n' "$(date -u +%F)" \
    "$(git -C "$HEARTH_ROOT" rev-parse --short HEAD 2>/dev/null || echo '?')" \
    "$(lscpu | sed -n 's/^Model name: *//p' | head -n 1)" "$(nproc)" "$(uname -r)"
what=$1
shift
[[ $what != scale ]] || set -- --moto "$venv/bin/python" "$@"
HEARTH_LOG=warn exec "$venv/bin/python" "$HEARTH_ROOT/tests/scale/$what.py" \
    "$HEARTH_TARGET/release/hearth" "$HEARTH_TARGET/bench/$what" "$@"
