# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153 # shared with the scripts that source this
# The cloud that scripts/up starts: where it runs and how it is reached.
# Sourced after common.sh and lab.sh.

HEARTH_PORT=8773
HEARTH_ENV=$HEARTH_ROOT/hearth.env
CLOUD_DATA=${HEARTH_DATA_DIR:-/var/lib/hearth}
CLOUD_LOG=$LAB_LOGS/hearth.log
HEARTH_BIN=$HEARTH_TARGET/release/hearth

# Runs a command on the host of the cloud: the lab, or this machine.
on_cloud() {
    if [[ $CLOUD_IN_LAB == 1 ]]; then lab_run "$LAB_CLOUD" "${HEARTH_LAB_TIMEOUT:-600}" "$@"; else "$@"; fi
}

# Any answer means that it serves; nothing unsigned gets more than a refusal.
cloud_answers() { curl -s -o /dev/null --max-time 10 "http://127.0.0.1:$HEARTH_PORT/"; }

# wait_for SECONDS WHAT COMMAND...
wait_for() {
    local limit=$1 what=$2 start=$SECONDS shown=0
    shift 2
    until "$@"; do
        ((SECONDS - start < limit)) || return 1
        if ((SECONDS - start - shown >= 15)); then
            shown=$((SECONDS - start))
            say "   … $(elapsed "$start"): waiting for $what"
        fi
        sleep 1
    done
}

# The newest AWS CLI of the pinned ones; Debian's own needs --endpoint-url.
cloud_aws() {
    # shellcheck disable=SC1090
    (set -a && source "$HEARTH_ENV" && exec "$HEARTH_VENV/bin/aws" --output text "$@")
}
