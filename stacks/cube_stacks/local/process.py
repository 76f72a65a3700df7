# SPDX-License-Identifier: Apache-2.0
"""Processes that outlive their command, known by pid *and* start time: a reused pid is never ours."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class ProcessFailure(Exception):
    """A program that could not be started or stopped; the message says which and why."""


@dataclass(frozen=True)
class Process:
    """A running program: `started` is field 22 of /proc/<pid>/stat, in ticks since this boot of the host."""

    pid: int
    started: int
    host_boot: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: object) -> Process | None:
        """The recorded process; None when the record is not one."""
        if not isinstance(record, Mapping):
            return None
        pid, started, boot = record.get("pid"), record.get("started"), record.get("host_boot")
        if isinstance(pid, int) and isinstance(started, int) and isinstance(boot, str) and pid > 1:
            return cls(pid, started, boot)
        return None

    def alive(self) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        if self.host_boot != host_boot():
            return False
        status = _status(self.pid)
        return status is not None and status == (self.started, True)

    def stop(self, patience_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL after `patience_s`; returns when it is gone. No error if it was gone already.

        Raises ProcessFailure when it can't be stopped.
        """
        for number, patience in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
            if not self._signal(number):
                return
            end = time.monotonic() + patience
            while time.monotonic() < end:
                _reap(self.pid)
                if not self.alive():
                    return
                time.sleep(0.02)
        raise ProcessFailure(f"process {self.pid} does not end; look at /proc/{self.pid}/stack")

    def _signal(self, number: signal.Signals) -> bool:
        # The descriptor holds the process; its start time is checked after, so no reuse slips between.
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise ProcessFailure(f"process {self.pid} belongs to another user; stop it as that user") from error
        finally:
            os.close(descriptor)
        return True


def host_boot() -> str:
    """The kernel's random id of this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _status(pid: int) -> tuple[int, bool] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold blanks and parentheses
    return int(fields[19]), fields[0] not in ("Z", "X")


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TZ")  # never the passphrase, or a cloud's credentials


def start_detached(command: Sequence[str], log: Path, cwd: Path | None = None) -> Process:
    """Start `command` in a session of its own, its output appended to `log`, with a few variables and nothing else.

    Raises ProcessFailure when the program is not there.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=True,
                cwd=cwd or log.parent,
                env={name: os.environ[name] for name in _INHERITED if name in os.environ},
            )
        except OSError as error:
            raise ProcessFailure(f"{command[0]}: {error.strerror}; `cube doctor` says how to get it") from error
    status = _status(child.pid)
    # Popen must not warn about, or wait for, a child that is meant to stay.
    child.returncode = 0
    if status is None:
        raise ProcessFailure(f"{command[0]} ended at once; see {log}")
    return Process(child.pid, status[0], host_boot())


def run_quick(command: Sequence[str], timeout_s: float) -> str:
    """Run a short program and return what it wrote. Raises ProcessFailure with the last line it wrote."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except OSError as error:
        raise ProcessFailure(f"{command[0]}: {error.strerror}; `cube doctor` says how to get it") from error
    except subprocess.TimeoutExpired as error:
        raise ProcessFailure(f"{command[0]}: no end after {timeout_s:g} s") from error
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        lines = [line for line in text.splitlines() if line.strip()]
        raise ProcessFailure(f"{command[0]}: exit status {done.returncode}: {lines[-1] if lines else 'no output'}")
    return text
