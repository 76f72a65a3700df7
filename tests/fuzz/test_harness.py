# SPDX-License-Identifier: Apache-2.0
"""The harness itself: every target takes its seeds, a planted fault of each kind is found, wheels are pinned.

The fuzzing is `python tests/fuzz/run.py`; here every target runs a few inputs, as a test of parser and seeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import child
import limits
import pytest
import seeds
import targets
import wheels

ROOT = Path(__file__).resolve().parents[2]
PLANTED = """
import time
from dataclasses import dataclass
from typing import Any, Callable

@dataclass(frozen=True)
class Target:
    name: str
    run: Callable[[bytes], object]
    expected: tuple = (ValueError,)

def crash(data):
    if data[:2] == b"AB":
        raise KeyError(data)
    raise ValueError("refused")

def slow(data):
    end = time.process_time() + 0.12
    while data[:1] == b"S" and time.process_time() < end:
        pass

def large(data):
    return bytearray(b"x") * (80 << 20 if data[:1] == b"L" else 1)

TARGETS = {t.name: t for t in (Target("crash", crash), Target("slow", slow), Target("large", large))}
SEEDS = {"crash": b"AA", "slow": b"S", "large": b"L"}

def table(worlds):
    return TARGETS
"""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    seeds._worlds(folder)
    return folder


@pytest.fixture(scope="module")
def collected(worlds: Path) -> Mapping[str, list[bytes]]:
    return seeds.collect(worlds, None)


NAMES = sorted(targets.table(Path()))


@pytest.mark.parametrize("name", NAMES)
def test_every_target_reads_a_seed_and_refuses_rubbish(
    name: str, worlds: Path, collected: Mapping[str, list[bytes]]
) -> None:
    target = targets.table(worlds)[name]
    read = 0
    for data in collected[name]:
        assert not limits.run(target, data)
        try:
            target.run(data)
        except target.expected:
            continue
        read += 1
    assert read or name in ("control-message", "receipt", "nvidia-rim"), "no seed is read to its end"
    for data in (
        b"",
        b"\0",
        b"{}",
        b"[" * 1000,
        b"\x30\x82\xff\xff",
        b"\xff" * 100,
        *(d[:-1] for d in collected[name]),
    ):
        assert not limits.run(target, data)


def test_faults_are_measured(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    table = child.load_targets(str(tmp_path / "planted.py")).table(tmp_path)
    assert limits.measure(table["crash"], b"AA").problem == ""
    assert "KeyError" in limits.measure(table["crash"], b"AB").problem
    assert "ms of CPU" in limits.measure(table["slow"], b"S").problem
    assert "MB extra" in limits.measure(table["large"], b"L").problem


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is in the fuzz group")
def test_a_planted_crash_is_found_reported_and_kept(tmp_path: Path) -> None:
    module, output = tmp_path / "planted.py", tmp_path / "output"
    module.write_text(PLANTED)
    command = [sys.executable, str(ROOT / "tests" / "fuzz" / "run.py"), "--seconds=15", "--confirm=2", "--jobs=3"]
    paths = [f"--corpus={tmp_path / 'corpus'}", f"--output={output}", f"--targets={module}"]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1, done.stdout + done.stderr
    rows = {row["target"]: row for row in json.loads((output / "report.json").read_text())}
    assert any("KeyError" in words for words in rows["crash"]["findings"])
    assert any("ms of CPU" in words for words in rows["slow"]["findings"])
    assert any("MB extra" in words for words in rows["large"]["findings"])
    assert all(row["executions"] > 0 and not row["broken"] for row in rows.values())
    kept = [path.read_bytes() for path in (output / "findings" / "crash").iterdir() if path.suffix != ".txt"]
    assert kept
    assert all(data[:2] == b"AB" for data in kept)


def test_wheels_are_the_pinned_ones() -> None:
    lock, project = (ROOT / "requirements.lock").read_text(), (ROOT / "pyproject.toml").read_text()
    found = wheels.pinned(lock, project)
    assert [one.partition("==")[0] for one in found] == ["atheris", *wheels.NEEDED]
    assert all(version for _, _, version in (one.partition("==") for one in found))
    with pytest.raises(ValueError, match="cffi"):
        wheels.pinned("", project)
