#!/usr/bin/env python3
"""Writes a cpio archive in the "newc" format (what the kernel unpacks as initramfs), without root, the same bytes each time.

    mkcpio.py OUT SPEC...

SPEC is one of
    dir:/path
    file:/path=source[:octal mode]     default mode 755
    link:/path=target
    chr:/path=major,minor[:octal mode] default mode 600
"""

import sys


def entry(archive, ino, name, mode, data=b"", major=0, minor=0, nlink=1):
    """Appends one member: 110 bytes of hexadecimal header, the name, the data, each padded to 4 bytes."""
    name = name.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (ino, mode, 0, 0, nlink, 0, len(data), 0, 0, major, minor, len(name), 0)
    archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    archive += b"\0" * (-len(archive) % 4) + data
    archive += b"\0" * (-len(archive) % 4)


def mode_of(value, default):
    """Splits an optional ":octal" off the end."""
    head, colon, tail = value.rpartition(":")
    return (head, int(tail, 8)) if colon and tail.isdigit() else (value, default)


def main(out, specs):
    archive = bytearray()
    for ino, spec in enumerate(specs, start=1):
        kind, rest = spec.split(":", 1)
        path, _, value = rest.partition("=")
        path = path.lstrip("/")
        if kind == "dir":
            entry(archive, ino, path, 0o040755, nlink=2)
        elif kind == "file":
            source, mode = mode_of(value, 0o755)
            with open(source, "rb") as file:
                entry(archive, ino, path, 0o100000 | mode, file.read())
        elif kind == "link":
            entry(archive, ino, path, 0o120777, value.encode())
        elif kind == "chr":
            numbers, mode = mode_of(value, 0o600)
            major, minor = (int(number) for number in numbers.split(","))
            entry(archive, ino, path, 0o020000 | mode, major=major, minor=minor)
        else:
            sys.exit(f"mkcpio: unknown kind in '{spec}'")
    entry(archive, 0, "TRAILER!!!", 0)
    archive += b"\0" * (-len(archive) % 512)
    with open(out, "wb") as file:
        file.write(archive)


if len(sys.argv) < 3:
    sys.exit(__doc__)
main(sys.argv[1], sys.argv[2:])
