# SPDX-License-Identifier: Apache-2.0
"""A machine of this host seen from outside: is it there, why does it not answer, how far did it boot."""

from __future__ import annotations

from pathlib import Path

from cube_stacks.gate import Down
from cube_stacks.local import console, machine


def gone(log: Path, instance: str) -> bool:
    """Whether `instance`, whose console is `log`, is known to run no longer."""
    found = machine.load(log.parent)
    return found is None or found.instance != instance or not found.alive()


def down(log: Path, instance: str) -> Down | None:
    """Why `instance` does not answer, as far as it can be seen; None when it may still be booting."""
    failure = console.boot_failure(console.tail(log))
    if failure is not None and failure.final:
        return Down(failure.reason, final=True)
    found = machine.load(log.parent)
    if found is None or found.instance != instance:
        return Down("there is no such machine any more", final=True)
    if not found.alive():
        said = [line for line in console.tail(found.folder / "qemu.log").splitlines() if line.strip()]
        return Down(f"the emulator ended{': ' + console.clean(said[-1]) if said else ''}", final=True)
    stopped = found.stopped_by()
    if stopped in ("internal-error", "guest-panicked", "io-error", "shutdown"):
        return Down(f"the emulator stopped the machine: {stopped}", final=True)
    return None if failure is None else Down(failure.reason, final=False)


def stage(log: Path) -> str:
    """How far the boot got, by its console."""
    return console.stage(console.tail(log))
