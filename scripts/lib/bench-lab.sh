# shellcheck shell=bash
# The small lab of the benches: QEMU with all that it needs in memory, so that two runs
# do the same (tests/bench/lab-init.sh). Sourced after common.sh and lab.sh.

lab=''
trap '[[ -z $lab ]] || kill "$lab" 2>/dev/null || true' EXIT


# archive FOLDER FILE: a cpio of it, everything root's, no times.
archive() {
    (cd "$1" && find . -mindepth 1 | LC_ALL=C sort |
        cpio --quiet -o -H newc -R 0:0 --reproducible --renumber-inodes) >"$2"
}

# with_libraries TREE PROGRAM...: copies programs with what they load.
with_libraries() {
    local tree=$1 program
    shift
    for program in "$@"; do
        printf '%s\n' "$program"
        ldd "$program" 2>/dev/null | grep -o '/[^ ]*' || true
    done | sort -u | while read -r program; do
        [[ -e $tree$program ]] || cp -L --parents "$program" "$tree"
    done
}

# lab_modules FOLDER VERSION MODULE...: copies modules with what they need; in the order
# of FOLDER/order they can be loaded. brd has parameters: the lab's init loads it.
lab_modules() {
    local folder=$1 version=$2 module path names=()
    shift 2
    for module in "$@"; do
        while read -r _ path _; do
            path=${path%.zst}
            [[ " ${names[*]} " == *" ${path##*/} "* ]] && continue
            cp "$path" "$folder/"
            names+=("${path##*/}")
        done < <(modprobe --show-depends -S "$version" "$module" | grep '^insmod')
    done
    printf '%s\n' "${names[@]}" | grep -v '^brd.ko' >"$folder/order"
}

# small_lab NAME RUN STALL QEMU-OPTION...: one boot of RUN/initrd, until it ends or says
# nothing for STALL seconds. RUN/console has its words, RUN/results its figures.
#   LAB_APPEND   words for the kernel's command line
small_lab() {
    local name=$1 run=$2 stall=$3
    shift 3
    # One processor: see scripts/lib/lab.sh for what happens on two.
    # Without AVX the inner kernel doesn't stumble over the XSETBV that QEMU's
    # emulated SVM ignores; our static init does without.
    qemu-system-x86_64 -smp 1 -accel "tcg,thread=single" -M q35 -cpu max,-la57,-avx,-avx2,-f16c,-pku -m 3G \
        -nodefaults -no-user-config -display none -no-reboot -pidfile "$run/pid" \
        -kernel "$(lab_kernel)" -initrd "$run/initrd" \
        -append "console=ttyS0 quiet tsc=reliable clocksource=tsc mitigations=off nokaslr nowatchdog panic=-1 ${LAB_APPEND:-}" \
        -serial "file:$run/console" -serial "file:$run/results" "$@" </dev/null &
    lab=$!
    local pid=$lab size=0 new last=$SECONDS shown=0 line
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        new=$(($(stat -c %s "$run/results" 2>/dev/null || echo 0) + $(stat -c %s "$run/console" 2>/dev/null || echo 0)))
        if ((new != size)); then
            size=$new
            last=$SECONDS
            line=$(grep -a '^bench:' "$run/console" | tail -n 1 | tr -d '\r' || true)
            if [[ $line != "$shown" ]]; then
                say "   $name: ${line#bench: }"
                shown=$line
            fi
        elif ((SECONDS - last > stall)); then
            say "   $name: not a word for ${stall}s: ended"
            kill -9 "$pid" 2>/dev/null || true
            break
        fi
    done
    wait "$pid" 2>/dev/null || true
    lab=''
}
