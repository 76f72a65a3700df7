# SPDX-License-Identifier: Apache-2.0
"""One target in its own process: `seeds`, `fuzz` under atheris, or `confirm` without any instrumentation.

Findings lie in ``<output>/findings/<target>/``: the input, and beside it ``.txt`` with what happened.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
REPORT_SECONDS = 1.0
SUSPECTS = 40
SUSPECT_SECONDS = 0.08  # instrumented code is slower: what stays below can't be over the limit without
SUSPECT_BYTES = 16 << 20
PATHS = (
    HERE,
    HERE.parent / "attestation",
    *(HERE.parents[1] / room for room in ("attestation", "proxy", "templates")),
)


def load_targets(path: str) -> ModuleType:
    """The module with ``table(worlds)``: the project's, or one that a test gives."""
    if not path:
        return importlib.import_module("targets")
    spec = importlib.util.spec_from_file_location("targets_given", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["targets_given"] = module
    spec.loader.exec_module(module)
    return module


def keep(folder: Path, data: bytes, words: str) -> None:
    """One input with what it did."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(data).hexdigest()[:16]
    (folder / name).write_bytes(data)
    (folder / f"{name}.txt").write_text(words + "\n")


class Watch:
    """Runs inputs, counts, keeps what escapes (once per kind) and what looks slow or large, and reports itself."""

    def __init__(self, target: Any, run: Any, output: Path, seconds: float) -> None:
        self._target, self._run, self._output = target, run, output
        self._status = output / "status" / f"{target.name}.json"
        self._findings = output / "findings" / target.name
        self._suspects = output / "suspects" / target.name
        self._seen: dict[str, None] = {}
        self.count, self.slowest, self.slow_left = 0, 0.0, SUSPECTS
        self._start = time.monotonic()
        self._end, self._next = self._start + seconds, self._start
        self._peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __call__(self, data: bytes) -> None:
        if self.count % 16 == 0 and time.monotonic() >= self._next:
            self.tell()
            if time.monotonic() >= self._end:
                sys.stderr.flush()
                os._exit(0)
        self.count += 1
        start = time.process_time()
        problem = self._run(self._target, data)
        spent = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if problem and problem not in self._seen:
            self._seen[problem] = None
            keep(self._findings, data, problem)
        if self.slow_left and (
            (spent > SUSPECT_SECONDS and spent > 0.8 * self.slowest) or (peak - self._peak) << 10 > SUSPECT_BYTES
        ):
            self.slow_left -= 1
            keep(self._suspects, data, f"{1000 * spent:.0f} ms, {peak - self._peak} KiB more, instrumented")
        self.slowest, self._peak = max(self.slowest, spent), peak

    def tell(self) -> None:
        now = time.monotonic()
        self._next = now + REPORT_SECONDS
        value = {
            "executions": self.count,
            "seconds": now - self._start,
            "slowest": self.slowest,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "crashes": list(self._seen),
        }
        draft = self._status.with_suffix(".new")
        draft.write_text(json.dumps(value))
        draft.replace(self._status)


def _fuzz(options: argparse.Namespace) -> None:
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["cube_attestation", "cube_proxy", "targets_given"]):
        table: Mapping[str, Any] = load_targets(options.targets).table(options.output / "worlds")
    from limits import run

    (options.output / "status").mkdir(parents=True, exist_ok=True)
    corpus, seeds = options.corpus / options.target, options.output / "seeds" / options.target
    for folder in (corpus, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    watch = Watch(table[options.target], run, options.output, options.seconds)
    artifacts = options.output / "native" / options.target
    artifacts.mkdir(parents=True, exist_ok=True)
    # the seconds of libFuzzer are a second net: Watch ends the process itself
    flags = [
        f"-max_total_time={int(options.seconds) + 30}", f"-max_len={1 << 20}", "-timeout=20", "-rss_limit_mb=2048",
        "-verbosity=0", f"-artifact_prefix={artifacts}/", "-reload=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(corpus), str(seeds)], watch)
    atheris.Fuzz()


def _seeds(options: argparse.Namespace) -> None:
    if options.targets:
        module = load_targets(options.targets)
        for name, data in module.SEEDS.items():
            (options.output / "seeds" / name).mkdir(parents=True, exist_ok=True)
            (options.output / "seeds" / name / "0").write_bytes(data)
        return
    import seeds

    vectors = Path(options.vectors) if options.vectors else None
    seeds.write(options.output / "seeds", options.output / "worlds", vectors)


def _confirm(options: argparse.Namespace) -> None:
    """Measure suspects, and seeds blown up to 1 MB, each in a fork; prints ``cpu extra inputs`` of the worst."""
    target = load_targets(options.targets).table(options.output / "worlds")[options.target]
    import limits

    seeds = [path.read_bytes() for path in sorted((options.output / "seeds" / options.target).glob("*"))]
    seeds.sort(key=len)
    suspects = [
        path.read_bytes()
        for path in sorted((options.output / "suspects" / options.target).glob("*"))
        if path.suffix != ".txt"
    ]
    warm = (*seeds[:2], b"")
    seconds, extra, count = 0.0, 0, 0
    end = time.monotonic() + options.seconds
    for data in (*suspects, *seeds, *limits.stress((*seeds[:4], *seeds[-2:]))):
        if time.monotonic() > end:
            break
        cost = limits.measure(target, data, warm)
        count += 1
        seconds, extra = max(seconds, cost.seconds), max(extra, cost.extra)
        if cost.problem:
            keep(options.output / "findings" / options.target, data, cost.problem)
    report = {"seconds": seconds, "extra_mb": extra / (1 << 20), "inputs": count}
    (options.output / "status" / f"{options.target}.confirmed.json").write_text(json.dumps(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("seeds", "fuzz", "confirm"))
    parser.add_argument("--target", default="")
    parser.add_argument("--targets", default="", help="a module with other targets and SEEDS")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, default=Path())
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--vectors", default="")
    options = parser.parse_args()
    sys.path[:0] = [str(path) for path in PATHS]
    {"seeds": _seeds, "fuzz": _fuzz, "confirm": _confirm}[options.what](options)


if __name__ == "__main__":
    main()
