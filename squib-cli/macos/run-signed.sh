#!/bin/sh
# Cargo's runner on a Mac (.cargo/config.toml): signs what cargo has built, then becomes it.
set -eu
"$(dirname "$0")/sign.sh" "$1"
exec "$@"
