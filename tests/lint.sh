#!/bin/sh
# Checks every shell script with shellcheck and every GitHub workflow with actionlint (keys, expressions, jobs that need each other,
# inputs and age of the actions, and the shell of every step):
#
#   lint.sh [DIRECTORY]      default: this repository
#
# Both programs are of pinned versions, from PyPI, whose packages carry them; they are kept in ~/.cache/squib-tools, so the network is
# needed once. Python's venv and pip are what installs them.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "${1:-$here/..}"

wanted=$here/lint-requirements.txt
tools=${XDG_CACHE_HOME:-$HOME/.cache}/squib-tools/lint-$(cksum <"$wanted" | cut -d' ' -f1)
if [ ! -e "$tools/complete" ]; then
    log=$tools.log
    rm -rf "$tools"
    mkdir -p "$tools"
    { python3 -m venv "$tools" && "$tools/bin/python3" -m pip install --require-hashes --only-binary :all: -r "$wanted"; } >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        echo "lint: actionlint and shellcheck cannot be installed (Debian's python3-venv and the network are needed once); the log is $log" >&2
        exit 1
    }
    : >"$tools/complete"
fi
PATH=$tools/bin:$PATH

# Scripts are files called so, and files that say so in their first line.
scripts=$(find . \( -name target -o -name .git \) -prune -o -type f -size -64k -print | while read -r file; do
    case $file in
    *.sh) echo "$file" ;;
    *) [ -x "$file" ] && head -n 1 "$file" | LC_ALL=C grep -Eqa '^#!(/usr)?/bin/(env )?(ba)?sh' && echo "$file" ;;
    esac
done | sort) || true
[ -n "$scripts" ] || {
    echo "lint: no scripts below $PWD" >&2
    exit 1
}
status=0
# `for word in $(cat ...)` means words here (SC2013). Names are without spaces.
# shellcheck disable=SC2086
shellcheck --external-sources --source-path=SCRIPTDIR --exclude=SC2013 $scripts || status=1
set -- .github/workflows/*.yml
if [ -e "$1" ]; then actionlint -no-color -shellcheck "$(command -v shellcheck)" "$@" || status=1; else status=1 && echo "lint: no workflows below $PWD" >&2; fi
[ "$status" = 0 ] && echo "lint: $(echo "$scripts" | wc -l | tr -d ' ') scripts and $# workflows are good"
exit "$status"
