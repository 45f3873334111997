# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153 # shared with the scripts that source this
# The cloud that scripts/up starts: where it runs and how it is reached.
# Sourced after common.sh and lab.sh.
#
# A machine may have several: the unnamed one, and any by HEARTH_NAME (or
# --name), each with its own port, pool, data and lab.

# select_cloud: sets what belongs to the cloud of HEARTH_NAME. After a script has
# read its options, and once.
select_cloud() {
    local name=${HEARTH_NAME:-}
    [[ $name =~ ^([a-z0-9][a-z0-9-]{0,23})?$ ]] || die "no name of a cloud: $name (lower-case letters, digits and -)"
    if [[ -z $name ]]; then
        unset HEARTH_NAME
        CLOUD_LABEL=hearth
        CLOUD_FILES=$HEARTH_TARGET
        HEARTH_ENV=$HEARTH_ROOT/hearth.env
        LAB_CLOUD=$HEARTH_TARGET/lab/cloud
    else
        export HEARTH_NAME
        CLOUD_LABEL=hearth-$name
        CLOUD_FILES=$HEARTH_TARGET/clouds/$name
        HEARTH_ENV=$CLOUD_FILES/hearth.env
        LAB_CLOUD=$HEARTH_TARGET/lab/cloud-$name
    fi
    # What an earlier `up` said of it.
    local port='' data='' pool=''
    if [[ -f $HEARTH_ENV ]]; then
        port=$(sed -n 's/^AWS_ENDPOINT_URL=.*://p' "$HEARTH_ENV")
        # A lab's folders are the lab's: of this machine they say nothing.
        grep -qx HEARTH_LAB=1 "$HEARTH_ENV" || data=$(sed -n 's/^HEARTH_CLOUD_DATA=//p' "$HEARTH_ENV")
        pool=$(sed -n 's/^HEARTH_CLOUD_POOL=//p' "$HEARTH_ENV")
    fi
    HEARTH_PORT=${HEARTH_PORT:-${port:-8773}}
    CLOUD_POOL=${HEARTH_PUBLIC_POOL:-${pool:-203.0.113.0/24}}
    CLOUD_DATA=${HEARTH_DATA_DIR:-${data:-/var/lib/$CLOUD_LABEL}}
    CLOUD_RUN=/run/$CLOUD_LABEL
    CLOUD_LOG=$LAB_SHARE/$CLOUD_LABEL.log
    # Which of this machine's hearths is meant: the same for serve and purge.
    CLOUD_FLAGS=(--public-pool "$CLOUD_POOL" --run-dir "$CLOUD_RUN")
    [[ -z $name ]] || CLOUD_FLAGS+=(--name "$name")
}

HEARTH_BIN=$HEARTH_TARGET/release/hearth

# Runs a command on the host of the cloud: the lab, or this machine.
on_cloud() {
    if [[ $CLOUD_IN_LAB == 1 ]]; then HEARTH_IN_LAB=1 lab_run "$LAB_CLOUD" "${HEARTH_LAB_TIMEOUT:-600}" "$@"; else "$@"; fi
}

# Any answer means that it serves; nothing unsigned gets more than a refusal.
cloud_answers() { curl -s -o /dev/null --max-time 10 "http://127.0.0.1:$HEARTH_PORT/"; }

# The `hearth serve` of this cloud on this machine, by its data folder.
cloud_pid() { "$HEARTH_ROOT/scripts/lib/serve.sh" --pid "$CLOUD_DATA"; }

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
