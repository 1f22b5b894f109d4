#!/bin/sh
# What the suite needs beside Rust. Installs what is missing where apt and root are there, otherwise says what to install.
set -eu

missing=
want() { # want PROGRAM DEBIAN_PACKAGE
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing="$missing $2"
}

want cc gcc
want python3 python3
python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
case $(uname -s) in
Linux)
    # tar unpacks the kernel's sources with it.
    want xz xz-utils
    want mke2fs e2fsprogs
    want qemu-aarch64 qemu-user
    want qemu-system-aarch64 qemu-system-arm
    want aarch64-linux-gnu-as binutils-aarch64-linux-gnu
    [ "$(id -u)" = 0 ] || want fakeroot fakeroot
    # Elsewhere it comes with actionlint (lint.sh).
    [ "$(uname -m)" != aarch64 ] || want shellcheck shellcheck
    ;;
Darwin)
    # Apple's command line tools bring cc and python3; a Debian root disk cannot be built here.
    ;;
esac
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing:$missing"
    log=$(mktemp)
    # shellcheck disable=SC2086 # a list of packages
    { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1 || {
        tail -n 20 "$log"
        exit 1
    }
    rm -f "$log"
else
    echo "the suite needs these programs (Debian's package names):$missing" >&2
    [ "$(uname -s)" != Darwin ] || echo "cc and python3 come with Apple's command line tools: xcode-select --install" >&2
    exit 1
fi
