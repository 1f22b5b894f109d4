#!/bin/sh
# Assembles the bare guests: OUT/NAME.img for every NAME.S here. The results are kept in the repository beside the sources,
# so that tests need no assembler; a test compares them.
#
#   build.sh [OUT]      default: this directory
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-$here}
prefix=${CROSS_COMPILE-aarch64-linux-gnu-}
object=$(mktemp)
trap 'rm -f "$object"' EXIT
for source in "$here"/*.S; do
    name=$(basename "$source" .S)
    "${prefix}as" -I "$here" -march=armv8-a -o "$object" "$source"
    "${prefix}objcopy" -O binary -j .text "$object" "$out/$name.img"
done
