# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cube_stacks.local.process import Process, ProcessFailure, run_quick, start_detached

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"]  # fmt: skip  # noqa: E501


def test_it_runs_apart_and_stops(tmp_path: Path) -> None:
    process = start_detached(SLEEP, tmp_path / "log")
    try:
        assert process.alive()
        assert os.getsid(process.pid) == process.pid
        assert {Path(f"/proc/{process.pid}/fd/{n}").readlink() for n in (1, 2)} == {tmp_path / "log"}
        assert Path(f"/proc/{process.pid}/fd/0").readlink() == Path("/dev/null")
    finally:
        process.stop()
    assert not process.alive()
    process.stop()


def test_it_outlives_the_command_that_started_it(tmp_path: Path) -> None:
    code = (
        "import pathlib, json; from cube_stacks.local.process import start_detached;"
        f"p = start_detached({SLEEP!r}, pathlib.Path({str(tmp_path / 'log')!r})); print(json.dumps(p.to_json()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    process = Process.from_json(json.loads(done.stdout))
    assert process is not None
    try:
        assert process.alive()
    finally:
        process.stop()
    assert not process.alive()


def test_a_reused_pid_is_never_ours(tmp_path: Path) -> None:
    process = start_detached(SLEEP, tmp_path / "log")
    try:
        for other in (replace(process, started=process.started + 1), replace(process, host_boot="another")):
            assert not other.alive()
            other.stop()
        assert process.alive()
    finally:
        process.stop()


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = start_detached(STUBBORN, tmp_path / "log")
    while "up" not in (tmp_path / "log").read_text():
        time.sleep(0.02)
    process.stop(patience_s=0.2)
    assert not process.alive()


@pytest.mark.parametrize(
    "record",
    [None, {}, [], {"pid": 1, "started": 1, "host_boot": "x"}, {"pid": "7", "started": 1, "host_boot": "x"}],
)
def test_a_broken_record_is_no_process(record: object) -> None:
    assert Process.from_json(record) is None


def test_a_missing_program_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailure, match="cube doctor"):
        start_detached(["no-such-program-here"], tmp_path / "log")
    with pytest.raises(ProcessFailure, match="cube doctor"):
        run_quick(["no-such-program-here"], 1)


def test_a_quick_program_that_fails_or_hangs_is_one_line() -> None:
    assert run_quick([sys.executable, "-c", "print('x')"], 10) == "x\n"
    with pytest.raises(ProcessFailure, match=r"exit status 3: bad day$"):
        run_quick([sys.executable, "-c", "print('one'); print('bad day'); exit(3)"], 10)
    with pytest.raises(ProcessFailure, match="no end after"):
        run_quick(SLEEP, 0.3)
