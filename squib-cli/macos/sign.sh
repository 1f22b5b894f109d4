#!/bin/sh
# Gives programs the entitlement that Hypervisor.framework asks for, with an ad-hoc signature (no certificate needed):
#
#   sign.sh PROGRAM...
#
# A program that has it already is left alone. The signed copy replaces the program in one step, so that several callers
# cannot see a half-signed file, and the kernel cannot take the new file for the old one by its inode.
set -eu
entitlements=$(dirname "$0")/squib.entitlements

for program; do
    [ -f "$program" ] || {
        echo "squib: cannot sign $program: there is no such file" >&2
        exit 1
    }
    if codesign --display --entitlements - "$program" 2>/dev/null | grep -q com.apple.security.hypervisor; then continue; fi
    copy=$program.signing.$$
    trap 'rm -f "$copy"' EXIT
    cp "$program" "$copy"
    said=$(codesign --sign - --force --entitlements "$entitlements" "$copy" 2>&1) || {
        echo "squib: $program cannot be signed: are Apple's command line tools there? (xcode-select --install) codesign says: $said" >&2
        exit 1
    }
    mv "$copy" "$program"
done
