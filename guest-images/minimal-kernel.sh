#!/bin/sh
# Builds the minimal guest kernel (Linux 6.12, ./minimal-kernel.config) from Debian's linux-source package into
# $SQUIB_GUEST_CACHE/minimal. About four minutes on two idle cores, once.
#
#   SQUIB_LINUX_SOURCE=FILE.tar.xz   a kernel source tree to use instead of the package
#   CROSS_COMPILE                    prefix of the arm64 compiler (default aarch64-linux-gnu-, none on an arm64 host)
#   JOBS                             parallel compilers (default: all processors)
set -eu
. "$(dirname "$0")/common.sh"

[ "$(uname -s)" = Linux ] || die "the kernel builds on Linux only" "copy minimal/Image from a Linux machine's cache to $cache/minimal"
case $(uname -m) in aarch64) cross=${CROSS_COMPILE:-} ;; *) cross=${CROSS_COMPILE:-aarch64-linux-gnu-} ;; esac
need make bc flex bison xz tar "${cross}gcc"
lock_cache minimal

into=$cache/minimal
work=$cache/work/minimal
# Only what decides the result: a change of the configuration builds anew, a second call does nothing.
stamp=$(cksum <"$here/minimal-kernel.config")
if [ -s "$into/Image" ] && [ "$(cat "$into/stamp" 2>/dev/null)" = "$stamp" ]; then
    "$here/initramfs.sh" "$into/initramfs.cpio"
    printf '%s/Image\n%s/initramfs.cpio\n' "$into" "$into"
    exit 0
fi

mkdir -p "$work"
if [ -n "${SQUIB_LINUX_SOURCE:-}" ]; then
    source=$SQUIB_LINUX_SOURCE
else
    on_debian || die "this system has no apt to get linux-source-6.12 with" "set SQUIB_LINUX_SOURCE to a 6.12 source archive (.tar.xz)"
    source=$(find "$cache/linux-source" -name 'linux-source-6.12.tar.xz' 2>/dev/null | head -n1)
    if [ -z "$source" ]; then
        apt_tree bookworm minimal
        apt_unpack linux-source-6.12 "$cache/linux-source"
        source=$(find "$cache/linux-source" -name 'linux-source-6.12.tar.xz' | head -n1)
    fi
fi
if [ ! -e "$work/source/.unpacked" ]; then
    say "unpacking $source"
    rm -rf "$work/source"
    mkdir -p "$work/source"
    tar -xJf "$source" -C "$work/source" --strip-components=1
    : >"$work/source/.unpacked"
fi
[ -s "$cache/busybox/busybox" ] || "$here/fetch.sh" bookworm-cloud >/dev/null

export ARCH=arm64 CROSS_COMPILE="$cross" KBUILD_BUILD_USER=squib KBUILD_BUILD_HOST=squib
export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 2026'
mkdir -p "$work/build"
make -C "$work/source" O="$work/build" KCONFIG_ALLCONFIG="$here/minimal-kernel.config" allnoconfig >"$work/config.log" 2>&1 ||
    die "the kernel cannot be configured" "the log is $work/config.log"
grep '^CONFIG' "$here/minimal-kernel.config" | while read -r line; do
    grep -qxF "$line" "$work/build/.config" || say "not taken by this kernel: $line"
done
say "building the kernel (log: $work/build.log)"
make -C "$work/source" O="$work/build" -j"${JOBS:-$(nproc)}" Image Image.gz >"$work/build.log" 2>&1 ||
    die "the kernel does not build" "$(grep -m1 -i 'error' "$work/build.log")" "the log is $work/build.log"
rm -rf "$into.new"
mkdir -p "$into.new"
cp "$work/build/arch/arm64/boot/Image" "$work/build/arch/arm64/boot/Image.gz" "$work/build/.config" "$into.new/"
printf '%s\n' "$stamp" >"$into.new/stamp"
rm -rf "$into"
mv "$into.new" "$into"
rm -rf "$work"
"$here/initramfs.sh" "$into/initramfs.cpio"
printf '%s/Image\n%s/initramfs.cpio\n' "$into" "$into"
