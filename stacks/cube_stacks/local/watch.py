# SPDX-License-Identifier: Apache-2.0
"""A machine of this host seen from outside: is it there, why does it not answer, how far did it boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cube_stacks.gate import Down
from cube_stacks.local import console, machine
from cube_stacks.local.qemu import QemuFailure

_RESETS: Final = 2


def gone(log: Path, instance: str) -> bool:
    """Whether `instance`, whose console is `log`, is known to run no longer."""
    found = machine.load(log.parent)
    return found is None or found.instance != instance or not found.alive()


def down(log: Path, instance: str, since: int = 0) -> Down | None:
    """Why `instance` does not answer, as far as it can be seen; None when it may still be booting.

    What the console said before its byte `since` is of an earlier boot.
    """
    failure = console.boot_failure(console.tail(log, since=since))
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


class Watch:
    """One wait for a machine, in which an emulated guest whose kernel crashes is reset, at most twice.

    Emulators before QEMU 8.1 now and then run half of an instruction that the kernel of a guest with several
    processors is just patching; it then panics, about once in some hundreds of boots. A reset costs no trust:
    whatever boots is verified as ever.
    """

    def __init__(self, log: Path, instance: str, say: Callable[[str], None]) -> None:
        self._log, self._instance, self._say = log, instance, say
        self._since, self._resets = 0, _RESETS

    def down(self) -> Down | None:
        """As `down` of this module; None after a reset."""
        found = down(self._log, self._instance, self._since)
        if found is None or not self._resets:
            return found
        failure = console.boot_failure(console.tail(self._log, since=self._since))
        if failure is None or not failure.crash:
            return found
        running = machine.load(self._log.parent)
        if running is None or running.instance != self._instance or running.accelerator != "tcg":
            return found
        since = self._log.stat().st_size
        try:
            running.reboot()
        except QemuFailure:
            return found
        self._since = since
        self._resets -= 1
        self._say(f"the emulated kernel crashed ({failure.reason}), known of QEMU before 8.1: booting it again")
        return None

    def stage(self) -> str:
        """How far the boot got, by its console."""
        return console.stage(console.tail(self._log, since=self._since))
