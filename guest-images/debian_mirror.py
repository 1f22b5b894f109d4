#!/usr/bin/env python3
"""Debian arm64 packages straight from a mirror, for systems without apt. Python's standard library and gpgv only.

    debian_mirror.py show     MIRROR KEYRING CACHE SUITE PACKAGE          prints the package's entry
    debian_mirror.py download MIRROR KEYRING CACHE SUITE PACKAGE OUT.deb
    debian_mirror.py unpack   PACKAGE.deb DIRECTORY
    debian_mirror.py unxz     FILE.xz OUT

The chain is apt's own: gpgv checks InRelease against KEYRING, InRelease names the SHA-256 of the package list, the list
that of the package. Nothing unchecked is unpacked. Lists are kept in CACHE for a day.
"""

import hashlib
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request


def stop(message, *hints):
    sys.exit("\n    ".join((f"guest-images: error: {message}",) + hints))


def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()
    except OSError as error:
        stop(f"cannot download {url}: {error}", "check SQUIB_DEBIAN_MIRROR; run this again to retry")


def checked(data, sha256, what):
    if hashlib.sha256(data).hexdigest() != sha256:
        stop(f"{what} does not have the checksum that the signed release file gives", "the mirror may be in the middle of an update: try again later")
    return data


def release(mirror, keyring, cache, suite):
    """The text inside a good signature of the suite's InRelease file."""
    if not keyring or not os.access(keyring, os.R_OK):
        stop("set SQUIB_DEBIAN_KEYRING to Debian's archive keyring", "it is the file debian-archive-keyring.gpg of the package debian-archive-keyring")
    if not shutil.which("gpgv"):
        stop("the program 'gpgv' is missing: signatures cannot be checked", "it is part of GnuPG")
    signed = os.path.join(cache, f"{suite}.InRelease")
    plain = os.path.join(cache, f"{suite}.Release")
    with open(signed, "wb") as file:
        file.write(fetch(f"{mirror}/dists/{suite}/InRelease"))
    if os.path.exists(plain):
        os.remove(plain)
    verdict = subprocess.run(["gpgv", "--quiet", "--keyring", os.path.abspath(keyring), "--output", plain, signed], stderr=subprocess.PIPE, text=True)
    if verdict.returncode != 0:
        stop(f"the signature of {suite}'s InRelease file is not good", *verdict.stderr.strip().splitlines()[-2:])
    with open(plain) as file:
        return file.read()


def package_list(mirror, keyring, cache, suite):
    """The arm64 package list of the suite's main component, as text."""
    kept = os.path.join(cache, f"{suite}.Packages")
    if os.path.exists(kept) and time.time() - os.path.getmtime(kept) < 86400:
        with open(kept) as file:
            return file.read()
    name = "main/binary-arm64/Packages.xz"
    for line in release(mirror, keyring, cache, suite).partition("\nSHA256:")[2].splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == name:
            data = checked(fetch(f"{mirror}/dists/{suite}/{name}"), words[0], name)
            text = lzma.decompress(data).decode()
            with open(kept + ".new", "w") as file:
                file.write(text)
            os.replace(kept + ".new", kept)
            return text
    stop(f"{suite}'s release file does not list {name}")


def entry(mirror, keyring, cache, suite, package):
    """The newest entry of a package: the last one in the list."""
    found = [e for e in package_list(mirror, keyring, cache, suite).split("\n\n") if e.startswith(f"Package: {package}\n")]
    if not found:
        stop(f"Debian {suite} has no arm64 package '{package}'")
    return found[-1]


def download(mirror, keyring, cache, suite, package, out):
    fields = dict(line.split(": ", 1) for line in entry(mirror, keyring, cache, suite, package).splitlines() if ": " in line)
    print(f"guest-images: downloading {package} ({suite}, arm64)", file=sys.stderr)
    data = checked(fetch(f"{mirror}/{fields['Filename']}"), fields["SHA256"], package)
    with open(out, "wb") as file:
        file.write(data)


def unpack(package, directory):
    """A .deb is an ar archive: 8 bytes of magic, then members with 60-byte headers, padded to even lengths."""
    with open(package, "rb") as file:
        data = file.read()
    offset = 8
    while offset + 60 <= len(data):
        name = data[offset : offset + 16].decode().strip().rstrip("/")
        size = int(data[offset + 48 : offset + 58])
        if name.startswith("data.tar"):
            members = io.BytesIO(data[offset + 60 : offset + 60 + size])
            if name.endswith(".zst"):
                if not shutil.which("zstd"):
                    stop(f"the program 'zstd' is missing: {package} is compressed with it")
                members = io.BytesIO(subprocess.run(["zstd", "-qdc"], input=members.read(), stdout=subprocess.PIPE, check=True).stdout)
            with tarfile.open(fileobj=members) as archive:
                # Regular files are all that is wanted of a package here.
                archive.extractall(directory, [member for member in archive if member.isfile() and ".." not in member.name])
            return
        offset += 60 + size + size % 2
    stop(f"{package} is not a Debian package")


def unxz(compressed, out):
    with lzma.open(compressed) as data, open(out, "wb") as file:
        shutil.copyfileobj(data, file)


def main(arguments):
    if len(arguments) == 3 and arguments[0] == "unpack":
        unpack(*arguments[1:])
    elif len(arguments) == 3 and arguments[0] == "unxz":
        unxz(*arguments[1:])
    elif len(arguments) == 6 and arguments[0] == "show":
        print(entry(arguments[1].rstrip("/"), *arguments[2:]))
    elif len(arguments) == 7 and arguments[0] == "download":
        download(arguments[1].rstrip("/"), *arguments[2:])
    else:
        sys.exit(__doc__)


main(sys.argv[1:])
