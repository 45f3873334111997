# shellcheck shell=bash
# The Python environment of the benches' pictures and of moto: apart from that of the
# tests, which need neither. Sourced after common.sh.

venv=$HEARTH_TARGET/bench/scale-venv

# Makes it, unless it is there.
bench_python() {
    local packages=('moto[ec2,server]==5.2.5' 'botocore==1.44.5' 'boto3==1.44.5' 'matplotlib==3.11.2')
    need_packages python3 python3-venv
    mkdir -p "$HEARTH_TARGET/bench"
    [[ $(cat "$venv/.pins" 2>/dev/null) != "${packages[*]}" ]] || return 0
    rm -rf "$venv"
    python3 -m venv "$venv"
    step "python: ${packages[*]}" "$venv/bin/pip" install --disable-pip-version-check "${packages[@]}"
    printf %s "${packages[*]}" >"$venv/.pins"
}
