# SPDX-License-Identifier: Apache-2.0
"""The subprocess chokepoint: what a caller sees of good, bad, endless and cancelled programs."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest
from cube_images.run import Cancelled, RunError, run


def _gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that its new parent has not reaped counts)."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_streams_and_input() -> None:
    result = run(["sh", "-c", "cat; echo err >&2"], input=b"x" * 300_000)
    assert result.stdout == b"x" * 300_000
    assert result.stderr == b"err\n"


def test_lines_come_as_they_are_written() -> None:
    lines: list[str] = []
    run(["sh", "-c", "printf 'a\\nb\\rc'; printf 'd\\n' >&2"], on_line=lines.append)
    assert sorted(lines) == ["a", "b", "c", "d"]


def test_failure_names_program_reason_and_hint() -> None:
    with pytest.raises(RunError) as caught:
        run(["sh", "-c", "echo 'E: no such package' >&2; echo 'W: later' >&2; exit 7"], hint="do this")
    assert str(caught.value) == "sh failed with exit status 7: E: no such package (do this)"
    assert caught.value.returncode == 7
    assert "W: later" in caught.value.output


def test_killed_program() -> None:
    with pytest.raises(RunError, match="signal 9"):
        run(["sh", "-c", "kill -9 $$"])


def test_missing_program_is_one_clear_error() -> None:
    with pytest.raises(RunError, match=r"no-such-program is not installed .*apt-get install it"):
        run(["no-such-program"], hint="apt-get install it")


@pytest.mark.slow
def test_timeout_takes_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(RunError, match="longer than 1 s"):
        run(["sh", "-c", f"trap '' TERM; sleep 100 & echo $! > {note}; wait; wait"], timeout=1)
    assert _gone(int(note.read_text()))


def test_cancel(tmp_path: Path) -> None:
    note, cancel = tmp_path / "pid", threading.Event()
    threading.Timer(0.5, cancel.set).start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        run(["sh", "-c", f"sleep 100 & echo $! > {note}; wait"], cancel=cancel)
    assert time.monotonic() - start < 5
    assert _gone(int(note.read_text()))


def test_interrupt_takes_the_group_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def interrupt() -> None:
        if note.exists() and note.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", f"sleep 100 & echo $! > {note}; wait"], on_tick=interrupt)
    assert _gone(int(note.read_text()))


def test_a_daemon_that_keeps_the_pipes_does_not_keep_us() -> None:
    start = time.monotonic()
    result = run(["sh", "-c", "setsid sleep 3 & echo done"])
    assert result.text == "done"
    assert time.monotonic() - start < 2


def test_environment_is_added() -> None:
    program = "import os; print(os.environ['CUBE_TEST'], os.environ['PATH'])"
    assert run([sys.executable, "-c", program], env={"CUBE_TEST": "1"}).text == f"1 {os.environ['PATH']}"
