#!/usr/bin/env bash
# scripts/bench scale [--sizes N,...] [--hosts N]: what the API costs against the
# number of instances, hearth on simulated hosts beside moto's server. Table,
# figures and picture stay in target/bench/scale.
# scripts/bench soak [--minutes N] [--each N]: what hearth holds after hours of launches
# and ends. Figures stay in target/bench/soak.
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck source=bench-python.sh
source "$HEARTH_ROOT/scripts/lib/bench-python.sh"

need_cargo
bench_python
step "cargo: hearth" cargo build --release --locked -p hearth-control-plane --bins
printf 'Measured %s, commit %s, on %s (%s CPUs, Linux %s).\n' "$(date -u +%F)" \
    "$(git -C "$HEARTH_ROOT" rev-parse --short HEAD 2>/dev/null || echo '?')" \
    "$(lscpu | sed -n 's/^Model name: *//p' | head -n 1)" "$(nproc)" "$(uname -r)"
what=$1
shift
[[ $what != scale ]] || set -- --moto "$venv/bin/python" "$@"
HEARTH_LOG=warn exec "$venv/bin/python" "$HEARTH_ROOT/tests/scale/$what.py" \
    "$HEARTH_TARGET/release/hearth" "$HEARTH_TARGET/bench/$what" "$@"
