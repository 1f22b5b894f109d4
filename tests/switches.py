#!/usr/bin/env python3
"""The tests that have machines, with switches of the stand-in turned, once for each argument:

    switches.py [POSITIONS]...      as SQUIB_SIM takes them; default: every position of every switch, each alone (an hour)

The programs are those that `make unit` builds, so nothing is compiled twice. CARGO and FEATURES are as in the Makefile.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

CARGO = os.environ.get("CARGO", "cargo")
PROGRAMS = ["squib-host/src/lib.rs", "squib-host/tests/lazy.rs", "squib-host/tests/machine.rs"]
PROGRAMS += [f"tests/tests/{name}.rs" for name in ("bare", "boot", "dirty", "lazy", "ptp", "sleep", "snapshot")]


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


def run(position, name, program):
    """Runs one program, shows what it printed when it is done, and says whether it failed."""
    environment = {**os.environ, "SQUIB_SIM": position}
    done = subprocess.run([program], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sys.stdout.buffer.write(f"\nSQUIB_SIM={position}: {name}\n".encode() + done.stdout)
    sys.stdout.flush()
    return [f"SQUIB_SIM={position} {program}"] if done.returncode != 0 else []


def main(positions):
    programs = built()
    positions = positions or cargo("run", "--locked", "-q", "-p", "squib-sim", "--example", "positions")
    # The tests of one program take turns at its machine, so two programs keep two processors busy.
    with ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2)) as pool:
        runs = [pool.submit(run, position, *program) for position in positions for program in programs]
        failed = sum((done.result() for done in runs), [])
    print("\n".join(["", "failed:", *failed] if failed else [""]))
    return bool(failed)


sys.exit(main(sys.argv[1:]))
