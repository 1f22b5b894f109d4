#!/bin/sh
# Builds an initramfs: static busybox, the ./init beside this script, and kernel modules if a directory with them is given.
#
#   initramfs.sh OUT.cpio [MODULES_DIRECTORY]
#
# Uncompressed on purpose: unpacking gzip costs an emulated guest tens of millions of instructions. Reproducible: the
# same inputs give the same bytes. OUT is left alone when nothing changed.
set -eu
. "$(dirname "$0")/common.sh"

out=$1
modules=${2:-}
busybox=$cache/busybox/busybox
[ -s "$busybox" ] || die "no busybox in $cache" "run guest-images/fetch.sh first"

set -- dir:/bin dir:/sbin dir:/dev chr:/dev/console=5,1 chr:/dev/null=1,3:666 dir:/proc dir:/sys dir:/tmp dir:/etc dir:/root \
    dir:/newroot dir:/lib dir:/lib/modules "file:/bin/busybox=$busybox" "file:/init=$here/init"
for applet in awk base64 basename cat chroot cmp cp cut date dd df dmesg echo env expr false find free grep gzip gunzip head \
    hexdump hostname id insmod kill ln ls lsmod md5sum mkdir mknod mount mv nice nproc od poweroff printf ps pwd readlink reboot rm sed seq sh setsid cttyhack \
    sha256sum sleep sort stat stty switch_root sync tail tar taskset tee test time top touch tr true umount uname uniq uptime usleep vi wc xargs \
    yes zcat; do
    set -- "$@" "link:/bin/$applet=busybox"
done
if [ -n "$modules" ] && [ -s "$modules/order" ]; then
    set -- "$@" "file:/lib/modules/order=$modules/order:644"
    while read -r module; do set -- "$@" "file:/lib/modules/$module=$modules/$module:644"; done <"$modules/order"
fi
python3 "$here/mkcpio.py" "$out.new" "$@"
if cmp -s "$out.new" "$out"; then rm "$out.new"; else mv "$out.new" "$out"; fi
