#!/usr/bin/env bash
# What a command in the lab is given doesn't stand on any command line: neither
# credentials nor the command itself. ssh is a stand-in; nothing boots.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin" "$work/lab"
echo 22 >"$work/lab/port"
cat >"$work/bin/ssh" <<'SSH'
#!/bin/sh
# Keeps its command line, and runs what it is to run as sshd would.
echo "$*" >>"$WORK/seen"
for last; do :; done
exec sh -c "$last"
SSH
chmod +x "$work/bin/ssh"
export WORK=$work PATH=$work/bin:$PATH AWS_SECRET_ACCESS_KEY='s3cr3t & "more"' HEARTH_MARK=marked

# shellcheck source=../../scripts/lib/common.sh
source scripts/lib/common.sh
# shellcheck source=../../scripts/lib/lab.sh
source scripts/lib/lab.sh
out=$(echo input | lab_run "$work/lab" 60 'echo "$AWS_SECRET_ACCESS_KEY $HEARTH_MARK $(cat) $PWD"')
[[ $out == "s3cr3t & \"more\" marked input $PWD" ]] || die "the command saw: $out"
rc=0
lab_run "$work/lab" 60 sh -c 'exit 7' || rc=$?
[[ $rc == 7 ]] || die "status $rc"
if grep -q -e s3cr3t -e marked -e 'echo' "$work/seen"; then die "on a command line: $(cat "$work/seen")"; fi
[[ -z $(find "$work/lab" -name 'run.*') ]] || die "the file is left"
echo ok
