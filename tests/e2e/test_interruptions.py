# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while the machine starts and while the gate waits: nothing unknown stays, and the next `make up` goes on.

(Interrupting the build of an image is tests/images/test_image.py's.)
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import pytest
from cube_stacks.local import machine as machines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.image,
    pytest.mark.machine,
    pytest.mark.timeout(600),
]


def interrupted_at(deployment: Any, *words: str) -> str:
    """What `make up` printed until it was interrupted at the first line that holds all of `words`, and after."""
    process = deployment.start(sys.executable, "tools/local.py", "up")
    told = []
    assert process.stdout is not None
    for line in process.stdout:
        told.append(line)
        if all(word in line for word in words):
            os.killpg(process.pid, signal.SIGINT)
            break
    told += list(process.stdout)
    assert process.wait(60) != 0, "".join(told)
    return "".join(told)


def known_processes(deployment: Any) -> set[int]:
    """The processes that `make down` will find: those of recorded machines."""
    folder = deployment.state / "machines"
    found = [machines.load(entry) for entry in folder.iterdir()] if folder.is_dir() else []
    return {
        process.pid
        for machine in found
        if machine is not None
        for process in (machine.qemu, machine.swtpm)
        if process is not None
    }


def unknown_processes(deployment: Any) -> list[str]:
    known = known_processes(deployment)
    return [line for line in deployment.processes() if int(line.split()[0]) not in known]


def nothing_unknown_stays(deployment: Any) -> None:
    end = time.monotonic() + 20
    while unknown_processes(deployment) and time.monotonic() < end:
        time.sleep(0.2)
    assert unknown_processes(deployment) == []


def test_interrupted_and_up_again(deployment: Any) -> None:
    for words in (("LocalMachine", "creating"), ("AttestationGate", "creating", "waiting for the machine")):
        told = interrupted_at(deployment, *words)
        assert "Traceback" not in told, told
        nothing_unknown_stays(deployment)
    assert "Paris" in deployment.local("up", timeout=500).stdout


def test_down_after_interruptions_leaves_nothing(deployment: Any) -> None:
    deployment.local("down")
    end = time.monotonic() + 15
    while deployment.processes() and time.monotonic() < end:
        time.sleep(0.2)
    assert deployment.processes() == []
