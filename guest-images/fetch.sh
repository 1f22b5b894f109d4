#!/bin/sh
# Obtains guests and prints where they are.
#
#   fetch.sh [SUITE-FLAVOUR]...      SUITE: bookworm, trixie, sid    FLAVOUR: cloud, generic    (default: bookworm-cloud)
#
# For each guest, $SQUIB_GUEST_CACHE (default ~/.cache/squib-guest) afterwards holds
#   SUITE-FLAVOUR/Image           Debian's arm64 kernel
#   SUITE-FLAVOUR/initramfs.cpio  static busybox, ./init and the virtio and ext4 modules of that kernel
# What is there already is kept; an interrupted run goes on where it stopped.
#
# On Debian the packages come through the machine's own apt, signatures checked, in a tree of its own (no root needed).
# Elsewhere, or instead:
#   SQUIB_GUEST_KERNEL=FILE    an arm64 kernel (Image, or a Debian linux-image .deb), used as bookworm-cloud
#   SQUIB_GUEST_BUSYBOX=FILE   a static arm64 busybox (the program, or Debian's busybox-static .deb)
#   SQUIB_DEBIAN_MIRROR=URL    a Debian mirror to download both from, signatures checked with gpgv against
#   SQUIB_DEBIAN_KEYRING=FILE  Debian's archive keyring
set -eu
. "$(dirname "$0")/common.sh"

# A .deb is an ar archive with one data.tar.* in it; bsdtar (macOS) reads ar itself.
unpack_deb() {
    mkdir -p "$2"
    if command -v dpkg-deb >/dev/null 2>&1; then dpkg-deb -x "$1" "$2"; else python3 "$here/debian_mirror.py" unpack "$1" "$2"; fi
}

from_mirror() { # from_mirror SUITE PACKAGE DIRECTORY
    rm -rf "$3.new"
    mkdir -p "$3.new/deb" "$cache/mirror"
    python3 "$here/debian_mirror.py" download "$SQUIB_DEBIAN_MIRROR" "${SQUIB_DEBIAN_KEYRING:-}" "$cache/mirror" "$1" "$2" "$3.new/deb/package.deb"
    unpack_deb "$3.new/deb/package.deb" "$3.new/tree"
    rm -rf "$3"
    mv "$3.new" "$3"
}

no_source() {
    die "this system has no apt to get Debian's packages with" \
        "either name files:    SQUIB_GUEST_KERNEL=.../Image SQUIB_GUEST_BUSYBOX=.../busybox (or the two .deb files)" \
        "or name a mirror:     SQUIB_DEBIAN_MIRROR=URL SQUIB_DEBIAN_KEYRING=debian-archive-keyring.gpg (needs gpgv)"
}

fetch_busybox() {
    [ ! -s "$cache/busybox/busybox" ] || [ -n "${SQUIB_GUEST_BUSYBOX:-}" ] || return 0
    work=$cache/work/busybox
    rm -rf "$work"
    mkdir -p "$work" "$cache/busybox"
    if [ -n "${SQUIB_GUEST_BUSYBOX:-}" ]; then
        [ -r "$SQUIB_GUEST_BUSYBOX" ] || die "SQUIB_GUEST_BUSYBOX: cannot read $SQUIB_GUEST_BUSYBOX"
        case $SQUIB_GUEST_BUSYBOX in
        *.deb) unpack_deb "$SQUIB_GUEST_BUSYBOX" "$work/tree" ;;
        *) mkdir -p "$work/tree/bin" && cp "$SQUIB_GUEST_BUSYBOX" "$work/tree/bin/busybox" ;;
        esac
    elif on_debian; then
        apt_tree bookworm fetch
        apt_unpack busybox-static "$work"
    elif [ -n "${SQUIB_DEBIAN_MIRROR:-}" ]; then
        from_mirror bookworm busybox-static "$work"
    else
        no_source
    fi
    program=$(find "$work/tree" -type f -path '*bin/busybox' | head -n1)
    [ -n "$program" ] || die "no busybox program in the package"
    chmod 755 "$program"
    mv "$program" "$cache/busybox/busybox"
    rm -rf "$work"
}

# The packages that hold the kernel and its modules: dependencies of the metapackage are followed to the last of that name.
kernel_packages() { # kernel_packages SUITE FLAVOUR
    case $2 in cloud) pattern='cloud-arm64' meta=linux-image-cloud-arm64 ;; generic) pattern='arm64' meta=linux-image-arm64 ;; esac
    next=$meta
    while [ -n "$next" ]; do
        found=$next
        # linux-image-arm64 -> linux-image-6.1.0-49-arm64, and in sid -> linux-binary-7.2.3+deb14-arm64
        next=$(kernel_depends "$1" "$found" | grep -E "^linux-(image|binary)-[0-9].*-$pattern\$" | grep -vFx "$found" | head -n1) || true
    done
    [ "$found" != "$meta" ] || die "Debian $1 offers no package that $meta depends on"
    printf '%s\n' "$found"
    case $found in linux-binary-*) printf 'linux-modules-%s\n' "${found#linux-binary-}" ;; esac
}

kernel_depends() {
    if on_debian; then apt_cache show --no-all-versions "$2"; else
        python3 "$here/debian_mirror.py" show "$SQUIB_DEBIAN_MIRROR" "${SQUIB_DEBIAN_KEYRING:-}" "$cache/mirror" "$1" "$2"
    fi | sed -n 's/^Depends: //p' | tr ',' '\n' | sed 's/^ *//; s/ .*//'
}

fetch_kernel() { # fetch_kernel SUITE FLAVOUR
    into=$cache/$1-$2
    user_kernel=
    [ "$1-$2" != bookworm-cloud ] || user_kernel=${SQUIB_GUEST_KERNEL:-}
    [ ! -s "$into/Image" ] || [ -n "$user_kernel" ] || return 0
    work=$cache/work/$1-$2
    rm -rf "$work" "$into.new"
    mkdir -p "$work" "$into.new/modules"
    if [ -n "$user_kernel" ]; then
        [ -r "$user_kernel" ] || die "SQUIB_GUEST_KERNEL: cannot read $user_kernel"
        case $user_kernel in
        *.deb) unpack_deb "$user_kernel" "$work/tree" ;;
        *) mkdir -p "$work/tree/boot" && cp "$user_kernel" "$work/tree/boot/vmlinuz-given" ;;
        esac
    elif on_debian; then
        apt_tree "$1" fetch
        for package in $(kernel_packages "$1" "$2"); do apt_unpack "$package" "$work/$package"; done
    elif [ -n "${SQUIB_DEBIAN_MIRROR:-}" ]; then
        for package in $(kernel_packages "$1" "$2"); do from_mirror "$1" "$package" "$work/$package"; done
    else
        no_source
    fi
    image=$(find "$work" -type f -name 'vmlinuz*' | head -n1)
    [ -n "$image" ] || die "no kernel in the package for $1-$2"
    mv "$image" "$into.new/Image"
    # What a disk root needs, in the order of insmod; what a kernel has built in is not there as a file.
    : >"$into.new/modules/order"
    for module in virtio_ring virtio virtio_mmio virtio_blk rng-core virtio-rng crc16 crc32c_generic libcrc32c mbcache jbd2 ext4; do
        file=$(find "$work" -name "$module.ko*" | head -n1)
        case $file in
        '') continue ;;
        # Python knows the first, and is needed anyway.
        *.xz) python3 "$here/debian_mirror.py" unxz "$file" "$into.new/modules/$module.ko" ;;
        *.zst) need zstd && zstd -qdc "$file" >"$into.new/modules/$module.ko" ;;
        *) cp "$file" "$into.new/modules/$module.ko" ;;
        esac
        echo "$module.ko" >>"$into.new/modules/order"
    done
    rm -rf "$into" "$work"
    mv "$into.new" "$into"
}

[ $# -gt 0 ] || set -- bookworm-cloud
for guest; do
    case $guest in
    bookworm-cloud | bookworm-generic | trixie-cloud | trixie-generic | sid-cloud | sid-generic) ;;
    *) die "unknown guest '$guest'" "known: {bookworm,trixie,sid}-{cloud,generic}" ;;
    esac
done
need python3
lock_cache fetch
fetch_busybox
for guest; do
    fetch_kernel "${guest%-*}" "${guest#*-}"
    "$here/initramfs.sh" "$cache/$guest/initramfs.cpio" "$cache/$guest/modules"
    printf '%s/%s/Image\n%s/%s/initramfs.cpio\n' "$cache" "$guest" "$cache" "$guest"
done
