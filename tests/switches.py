#!/usr/bin/env python3
"""Every test program that has machines, with switches of the stand-in turned:

    switches.py presets             all that a host must put up with, many at once (`make switches`)
    switches.py turns               each program in one of the presets by turns, which differ little; not those about files (`make test`)
    switches.py each                each position alone (`make each-switch`, hours)
    switches.py POSITIONS...        once for each argument, which is as SQUIB_SIM takes it

The programs are those that `make unit` builds, so nothing is compiled twice; a new one is taken by itself. At the end: a table of
what took how long. CARGO and FEATURES are as in the Makefile; PROGRAMS names the programs to run, if not all (parts of their paths).
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

CARGO = os.environ.get("CARGO", "cargo")
# What is left out, and why: files and directories of tests.
LEFT_OUT = {
    "squib-snapshot/": "files, no machine",
    "squib-difftest/": "compares the engine with QEMU, below all switches",
    "squib-sim/": "the stand-in itself, whose tests say which position they are about",
    "squib-host/tests/switches.rs": "turns every switch itself",
    "squib-host/tests/mappings.rs": "memory without a machine",
    "squib-cli/tests/hypervisor.rs": "turns the switch it is about itself",
    "tests/tests/conformance/": "runs itself in every position",
    "tests/tests/report.rs": "reads what a script prints",
    "tests/src/bin/": "the report's own parts",
    "tests/tests/lint.rs": "scripts and workflows",
    "tests/tests/mac_scripts.rs": "scripts",
    "tests/tests/macos_only/": "sources",
}
# For `turns`: what these tests look at are files, sockets and arguments; their machines do what those of other tests do.
ABOUT_FILES = ("squib-cli/", "squib-host/tests/page_server/", "tests/tests/full_disk.rs", "tests/tests/page_server.rs")
# The others come after these, which take longest.
LONGEST = [f"tests/tests/{name}.rs" for name in ("lazy", "page_server", "snapshot", "diff", "full_disk", "dirty", "disk", "boot")]


def cargo(*arguments):
    done = subprocess.run([CARGO, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout.splitlines()


def built():
    """The wanted test programs, source and path, those that take longest first."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    features = os.environ.get("FEATURES", "").split()
    messages = cargo("test", "--locked", "--workspace", "--no-run", "--message-format", "json-render-diagnostics", *features)
    found = {}
    for message in (json.loads(line) for line in messages if line.startswith("{")):
        if message.get("executable") and message["profile"]["test"]:
            found[os.path.relpath(message["target"]["src_path"], root)] = message["executable"]
    gone = [name for name in [*LEFT_OUT, *LONGEST] if not any(source.startswith(name) for source in found)]
    if gone:
        sys.exit(f"switches: there are no tests {', '.join(gone)}: correct the lists in {os.path.relpath(__file__)}")
    wanted = os.environ.get("PROGRAMS", "").split() or [""]
    programs = [
        (source, path)
        for source, path in sorted(found.items())
        if not source.startswith(tuple(LEFT_OUT)) and any(part in source for part in wanted)
    ]
    return sorted(programs, key=lambda program: LONGEST.index(program[0]) if program[0] in LONGEST else len(LONGEST))


def run(position, name, program):
    """Runs one program and shows what it printed when it is done; its position, name, path, exit code, seconds, and those of processors."""
    environment = {**os.environ, "SQUIB_SIM": position}
    began = time.monotonic()
    child = subprocess.Popen([program], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    sys.stdout.buffer.write(f"\nSQUIB_SIM={position}: {name}\n".encode() + output)
    sys.stdout.flush()
    return position, name, program, child.returncode, seconds, used.ru_utime + used.ru_stime


def positions(argument):
    """What an argument stands for."""
    lists = {"presets": ["presets"], "turns": ["presets"], "each": []}
    if argument not in lists:
        return [argument]
    return cargo("run", "--locked", "-q", "-p", "squib-sim", "--example", "positions", "--", *lists[argument])


def main(arguments):
    if not arguments:
        sys.exit(__doc__)
    programs = built()
    turned = [position for argument in arguments for position in positions(argument)]
    if arguments == ["turns"]:
        programs = [program for program in programs if not program[0].startswith(ABOUT_FILES)]
        runs = [(turned[n % len(turned)], *program) for n, program in enumerate(programs)]
    else:
        runs = [(position, *program) for program in programs for position in turned]
    # The tests of one program take turns at its machine, so two programs keep two processors busy.
    with ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2)) as pool:
        done = list(pool.map(lambda one: run(*one), runs))
    print("\nseconds processors")
    for position, name, _, _, seconds, used in sorted(done, key=lambda one: -one[4]):
        print(f"{seconds:7.1f} {used:7.1f}  {position or 'default':32} {name}")
    failed = [f"SQUIB_SIM={position} {program}" for position, _, program, code, *_ in done if code != 0]
    print("\n".join(["", "failed:", *failed] if failed else [""]))
    return bool(failed)


sys.exit(main(sys.argv[1:]))
