# SPDX-License-Identifier: Apache-2.0
"""The one place that starts other programs.

Argument lists only, never a shell. Output is captured and becomes part of the error; a cancelled or interrupted
call takes the program's whole process group with it.
"""

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cube_images.errors import ImageError

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0
_TAIL = 20000


class RunError(ImageError):
    """A program could not be started, failed, ran past its limit, or was cancelled."""

    def __init__(self, message: str, hint: str = "", *, returncode: int | None = None, output: str = "") -> None:
        super().__init__(message, hint)
        self.returncode = returncode
        self.output = output


class Cancelled(RunError):
    """The caller's cancel event was set while the program ran."""


@dataclass(frozen=True)
class Result:
    """What a program wrote before it ended well."""

    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, without the white space around it."""
        return self.stdout.decode(errors="replace").strip()


def is_root() -> bool:
    """Whether this process may mount and change root without help."""
    return os.geteuid() == 0


def _gist(output: str) -> str:
    """The line that says what went wrong: apt's and others' first marked error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("E: ", "error: ", "ERROR: "))]
    return (marked[:1] or lines[-1:] or ["no output"])[0][:500]


def _as_root(argv: Sequence[str], env: Mapping[str, str] | None) -> list[str]:
    if is_root():
        return list(argv)
    if shutil.which("sudo") is None:
        raise RunError(f"{argv[0]} needs root", "run as root, or install sudo and allow it without a password")
    # sudo clears the environment; what the caller asked for is passed on by name.
    return ["sudo", "-n", "--", "env", *(f"{key}={value}" for key, value in (env or {}).items()), *argv]


def _stop(process: subprocess.Popen[bytes], root: bool) -> None:
    """End the whole process group: first politely, then not."""
    for number, wait in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            if root:
                subprocess.run(
                    ["sudo", "-n", "kill", f"-{int(number)}", "--", f"-{process.pid}"],
                    check=False,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=_GRACE_SECONDS,
                )
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM:
            # The leader is gone; children that ignored the first signal must not outlive it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        return


class _Lines:
    """Cuts a byte stream into lines for a callback; a carriage return ends a line too (progress bars)."""

    def __init__(self, call: Callable[[str], None]) -> None:
        self._call = call
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line.strip():
                self._call(line.decode(errors="replace").rstrip())

    def close(self) -> None:
        self.feed(b"\n")


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes = b"",
    on_line: Callable[[str], None] | None = None,
    on_tick: Callable[[], None] | None = None,
    cancel: threading.Event | None = None,
    timeout: float | None = None,
    root: bool = False,
    hint: str = "",
) -> Result:
    """Run a program to its end and return what it wrote.

    `env` is added to this process's environment. `on_line` gets each line of both streams as it comes; `on_tick`
    is called about five times a second while nothing else happens, for progress. `root` goes through `sudo -n`
    when this process isn't root. Raises `RunError` (with `hint` in its text) on a failure, a missing program or
    `timeout` seconds passed, and `Cancelled` once `cancel` is set. Whenever this function is left by an exception,
    the program and all that it started in its process group are gone.
    """
    words = [str(word) for word in argv]
    name = Path(words[0]).name
    command = _as_root(words, env) if root else words
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE if input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise RunError(f"{name} is not installed", hint or f"install it so that `{words[0]}` is on PATH") from error
    except OSError as error:
        raise RunError(f"{name} could not be started: {error.strerror}", hint) from error
    try:
        stdout, stderr = _pump(process, input, on_line, on_tick, cancel, timeout, name, hint)
    except BaseException:
        _stop(process, root)
        raise
    if process.returncode != 0:
        output = (stderr.strip() or stdout.strip()).decode(errors="replace")
        how = f"exit status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise RunError(
            f"{name} failed with {how}: {_gist(output)}",
            hint,
            returncode=process.returncode,
            output=output[-_TAIL:],
        )
    return Result(stdout, stderr)


def _pump(
    process: subprocess.Popen[bytes],
    data: bytes,
    on_line: Callable[[str], None] | None,
    on_tick: Callable[[], None] | None,
    cancel: threading.Event | None,
    timeout: float | None,
    name: str,
    hint: str,
) -> tuple[bytes, bytes]:
    """Feed and read the three pipes until the program has ended; its two outputs."""
    outputs = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    buffers = {stream.fileno(): bytearray() for stream in outputs}
    lines = {number: _Lines(on_line) for number in buffers} if on_line else {}
    end = None if timeout is None else time.monotonic() + timeout
    view = memoryview(data)
    with selectors.DefaultSelector() as selector:
        for stream in outputs:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        while selector.get_map() or process.poll() is None:
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"{name} was cancelled")
            if end is not None and time.monotonic() > end:
                raise RunError(f"{name} took longer than {timeout:.0f} s", hint)
            if not selector.get_map():
                time.sleep(_POLL_SECONDS / 10)
                continue
            ready = selector.select(_POLL_SECONDS)
            if not ready:
                # A daemon that inherited the pipes must not keep us here once the program itself has ended.
                if process.poll() is not None:
                    break
                if on_tick:
                    on_tick()
            for key, _ in ready:
                if process.stdin is not None and key.fileobj is process.stdin:
                    try:
                        view = view[os.write(key.fd, view[:65536]) :]
                    except BrokenPipeError:
                        view = view[len(view) :]
                    if not view:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                buffers[key.fd].extend(chunk)
                if key.fd in lines:
                    lines[key.fd].feed(chunk)
    process.wait()
    for cutter in lines.values():
        cutter.close()
    stdout, stderr = (bytes(buffers[stream.fileno()]) for stream in outputs)
    for stream in outputs:
        stream.close()
    return stdout, stderr
