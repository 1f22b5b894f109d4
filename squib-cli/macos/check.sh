#!/bin/sh
# Says in plain words what a Mac lacks for running guests on its hypervisor. Exit code 0: nothing.
set -eu
[ "$(uname -s)" = Darwin ] || exit 0

standin='the software stand-in needs none of this: add SIM=1 to the make command'
version=$(sw_vers -productVersion)
if [ "$(uname -m)" != arm64 ] && [ "$(sysctl -n sysctl.proc_translated 2>/dev/null || echo 0)" = 1 ]; then
    echo "squib: this shell runs under Rosetta, as a program for Intel: start a terminal of the Mac's own kind (arch -arm64 zsh)" >&2
elif [ "$(uname -m)" != arm64 ]; then
    echo "squib: this Mac has no Apple silicon, and a guest here would be an arm64 one. $standin" >&2
elif [ "${version%%.*}" -lt 15 ]; then
    echo "squib: macOS $version is too old: the interrupt controller squib uses came with macOS 15. $standin" >&2
elif [ "$(sysctl -n kern.hv_support 2>/dev/null || echo 0)" != 1 ]; then
    echo "squib: this macOS offers no hypervisor (kern.hv_support is 0; is it a virtual machine itself?). $standin" >&2
else
    exit 0
fi
exit 1
