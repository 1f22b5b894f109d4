#!/bin/sh
# Builds an ext4 disk with a Debian arm64 root, without mounting anything and without root:
#
#   rootfs.sh [OUT.ext4]      default $SQUIB_GUEST_CACHE/debian-root/bookworm.ext4, kept when it is there
#
# The packages come through the machine's own apt (see fetch.sh). They are unpacked, not configured: no maintainer script
# runs, so no arm64 program has to run here.
set -eu
. "$(dirname "$0")/common.sh"

packages='perl python3-minimal openssl stress-ng ca-certificates'
size=${SQUIB_ROOT_SIZE:-768M}
out=${1:-$cache/debian-root/bookworm.ext4}
[ ! -s "$out" ] || { printf '%s\n' "$out" && exit 0; }

on_debian || die "a Debian root needs Debian's apt and dpkg" "copy $out from a Debian machine's cache"
PATH=$PATH:/usr/sbin:/sbin
need mke2fs dpkg-deb
# Files of the image shall belong to root.
fake=
if [ "$(id -u)" != 0 ]; then
    command -v fakeroot >/dev/null 2>&1 || die "without root, the program 'fakeroot' is needed" "install it with the system's package manager"
    fake=fakeroot
fi
lock_cache rootfs
work=$cache/work/debian-root
rm -rf "$work/tree" "$work/disk"
mkdir -p "$work/tree" "$(dirname "$out")"

apt_tree bookworm rootfs
say "downloading a Debian root (bookworm, arm64)"
# shellcheck disable=SC2086 # a list of packages
apt_get -q -y -d install '?essential' apt $packages >"$work/download.log" 2>&1 ||
    die "the packages cannot be downloaded" "$(grep -m1 '^[EW]:' "$work/download.log")" "run this again to resume"

# Merged /usr first: dpkg-deb keeps the links.
for directory in bin sbin lib; do
    mkdir -p "$work/tree/usr/$directory"
    ln -s "usr/$directory" "$work/tree/$directory"
done
cat >"$work/assemble.sh" <<'INNER'
set -eu
tree=$1 archives=$2 out=$3 size=$4
for package in "$archives"/*.deb; do dpkg-deb -x "$package" "$tree"; done
# What maintainer scripts would have done and the programs need.
cp "$tree/usr/share/base-passwd/passwd.master" "$tree/etc/passwd"
cp "$tree/usr/share/base-passwd/group.master" "$tree/etc/group"
ln -sf mawk "$tree/usr/bin/awk"
echo squib >"$tree/etc/hostname"
mkdir -p "$tree/var/lib/dpkg" "$tree/var/lib/apt/lists/partial"
touch "$tree/var/lib/dpkg/status"
rm -rf "$tree/usr/share/doc" "$tree/usr/share/man" "$tree/usr/share/locale"
rm -f "$out.new"
mke2fs -q -F -t ext4 -E root_owner=0:0 -L squib-root -d "$tree" "$out.new" "$size" >/dev/null
mv "$out.new" "$out"
INNER
say "writing $out"
$fake sh "$work/assemble.sh" "$work/tree" "$apt_root/cache/archives" "$out" "$size" || die "the disk cannot be written" "see above"
rm -rf "$work"
printf '%s\n' "$out"
