#!/bin/sh
# `make test`: the whole suite, step by step, with one closing summary in the manner of `cargo test`. Every step runs even when an
# earlier one failed; the exit code is 0 only when all passed. Logs: target/suite/.
set -u
cd "$(dirname "$0")/.." || exit 1

logs=${CARGO_TARGET_DIR:-target}/suite
mkdir -p "$logs"
: >"$logs/table"
passed=0 failed=0 began=$(date +%s)

# step NAME COMMAND...: runs, shows the output, and counts what it finds of cargo's own result lines (else 1 per step).
step() {
    name=$1
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    start=$(date +%s)
    { "$@" 2>&1; echo $? >"$logs/$name.status"; } | tee "$logs/$name.log"
    count
}

# A background step does not outlive the suite.
trap 'trap - INT TERM; kill 0' INT TERM

# beside NAME COMMAND...: the same in the background, for what processors have left over; `joined` shows and counts it.
beside() {
    beside_name=$1 beside_start=$(date +%s)
    shift
    { nice -n 19 "$@" >"$logs/$beside_name.log" 2>&1; echo $? >"$logs/$beside_name.status"; } &
}

joined() {
    wait
    name=$beside_name start=$beside_start
    printf '\n=== %s, which ran beside the others:\n' "$name"
    cat "$logs/$name.log"
    count
}

# Adds a step that is done to the table.
count() {
    status=$(cat "$logs/$name.status")
    counts=$(awk '/^test result:/ {p += $4; f += $6; n++} END {if (n) print p + 0, f + 0}' "$logs/$name.log")
    if [ -n "$counts" ]; then
        step_passed=${counts% *} step_failed=${counts#* }
        [ "$status" = 0 ] || [ "$step_failed" -gt 0 ] || step_failed=1
    elif [ "$status" = 0 ]; then
        step_passed=1 step_failed=0
    else
        step_passed=0 step_failed=1
    fi
    passed=$((passed + step_passed)) failed=$((failed + step_failed))
    verdict=ok
    [ "$step_failed" = 0 ] || verdict=FAILED
    printf '%-10s %-6s %6s passed %4s failed %6s s\n' "$name" "$verdict" "$step_passed" "$step_failed" $(($(date +%s) - start)) >>"$logs/table"
    [ "$step_failed" = 0 ]
}

unchecked=
step deps make deps
if [ -n "${MACOS_CARGO:-}" ]; then
    beside macos make macos
fi
step guests guest-images/fetch.sh bookworm-cloud trixie-cloud sid-cloud
step root-disk make root-disk
step fmt make fmt
step lint make lint
step unit env RUST_BACKTRACE=1 make unit
if [ "$(uname -sm)" != "Darwin arm64" ] || [ -n "${SIM:-}" ]; then
    # The framework has no switches.
    step switches env RUST_BACKTRACE=1 make switches SWITCHES=turns
fi
step docs make docs
if [ -n "${MACOS_CARGO:-}" ]; then
    joined
elif [ "$(uname -sm)" != "Darwin arm64" ]; then
    unchecked='aarch64-apple-darwin was NOT checked: no cargo for it here (MACOS_CARGO names one); this is not counted as passed.'
fi

printf '\n=== summary\n'
cat "$logs/table"
[ -z "$unchecked" ] || printf '%s\n' "$unchecked"
verdict=ok
[ "$failed" = 0 ] || verdict=FAILED
printf '\ntest result: %s. %s passed; %s failed; 0 ignored; 0 measured; 0 filtered out; finished in %ss\n' \
    "$verdict" "$passed" "$failed" $(($(date +%s) - began))
[ "$failed" = 0 ]
