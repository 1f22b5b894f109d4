#!/usr/bin/env python3
"""The tests that have machines, with switches of the stand-in turned, once for each argument:

    switches.py [POSITIONS]...      as SQUIB_SIM takes them; default: every position of every switch, each alone (an hour)

The programs are those that `make unit` builds, so nothing is compiled twice. CARGO and FEATURES are as in the Makefile.
"""

import json
import os
import subprocess
import sys

CARGO = os.environ.get("CARGO", "cargo")
PROGRAMS = ["squib-host/src/lib.rs", "squib-host/tests/lazy.rs", "squib-host/tests/machine.rs"]
# It needs a guest at full speed, which some switches take.
SKIPPED = ["--skip", "large_diffs_are_read_under_a_writing_guest"]
PROGRAMS += [f"tests/tests/{name}.rs" for name in ("bare", "boot", "dirty", "lazy", "snapshot")]


def cargo(*arguments):
    done = subprocess.run([CARGO, *arguments, *os.environ.get("FEATURES", "").split()], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout.splitlines()


def built():
    """The paths of the wanted test programs, in order."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    messages = cargo("test", "--locked", "--workspace", "--no-run", "--message-format", "json-render-diagnostics")
    found = {}
    for message in (json.loads(line) for line in messages if line.startswith("{")):
        if message.get("executable") and message["profile"]["test"]:
            found[os.path.relpath(message["target"]["src_path"], root)] = message["executable"]
    missing = [name for name in PROGRAMS if name not in found]
    if missing:
        sys.exit(f"switches: cargo has not built the tests of {', '.join(missing)}")
    return [(name, found[name]) for name in PROGRAMS]


def main(positions):
    programs = built()
    failed = []
    for position in positions or cargo("run", "--locked", "-q", "-p", "squib-sim", "--example", "positions"):
        for name, program in programs:
            print(f"\nSQUIB_SIM={position}: {name}", flush=True)
            done = subprocess.run([program, *SKIPPED], env={**os.environ, "SQUIB_SIM": position}, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                failed.append(f"SQUIB_SIM={position} {program}")
    print("\n".join(["", "failed:", *failed] if failed else [""]))
    return bool(failed)


sys.exit(main(sys.argv[1:]))
