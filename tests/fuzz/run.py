# SPDX-License-Identifier: Apache-2.0
"""Fuzz the parsers: `python tests/fuzz/run.py --seconds 600 --jobs 16 --corpus DIR --output DIR [TARGET…]`.

Every target runs in its own process (atheris, libFuzzer), ``--jobs`` at a time; then what looked slow or large, and
seeds blown up to 1 MB, are measured without instrumentation. A line of progress every 2 seconds, a table at the end
(also ``<output>/report.txt`` and ``report.json``), inputs of findings under ``<output>/findings``. Exit code 1 when
there is a finding, 2 when a target could not run. New units go to ``<corpus>/<target>`` and seed the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import child

SAY_SECONDS = 2.0
CONFIRM_SECONDS = 45.0  # per target, without instrumentation
START_SECONDS = 60.0  # imports and instrumentation, on a busy machine
RESTARTS = 5  # after a crash of the process itself


@dataclass
class Running:
    """One process of a target."""

    target: str
    process: subprocess.Popen[bytes]
    end: float
    restarts: int = 0


class Fuzz:
    """One run over all targets."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._output: Path = options.output
        self._began = time.monotonic()
        self._said = 0.0
        self._broken: dict[str, str] = {}

    def everything(self) -> int:
        """Seeds, fuzzing, confirmation, table. Returns the exit code."""
        self._output.mkdir(parents=True, exist_ok=True)
        for name in ("findings", "suspects", "status", "native", "seeds", "worlds", "logs"):
            shutil.rmtree(self._output / name, ignore_errors=True)
        (self._output / "logs").mkdir()
        (self._output / "status").mkdir()
        self._alone("seeds", ["seeds", f"--vectors={self._options.vectors}"])
        names = sorted(path.name for path in (self._output / "seeds").iterdir())
        if unknown := set(self._options.names) - set(names):
            raise SystemExit(f"unknown target {', '.join(sorted(unknown))}; known: {', '.join(names)}")
        chosen = [name for name in names if not self._options.names or name in self._options.names]
        seconds = self._seconds(len(chosen))
        self._all("fuzz", chosen, seconds, seconds + START_SECONDS)
        confirm = min(CONFIRM_SECONDS, self._options.confirm)
        self._all("confirm", chosen, confirm, confirm + START_SECONDS)
        return self._report(chosen)

    def _seconds(self, targets: int) -> float:
        """What each target gets: as asked, or what ``--within`` leaves."""
        if not self._options.within:
            seconds: float = self._options.seconds
            return seconds
        rounds = -(-targets // self._options.jobs)
        left = self._options.within - (time.monotonic() - self._began)
        return max(1.0, float(left / rounds - 12.0 - self._options.confirm))

    def _arguments(self, rest: Sequence[str]) -> list[str]:
        common = [
            f"--output={self._output}",
            f"--corpus={self._options.corpus}",
            f"--targets={self._options.targets}",
        ]
        return [sys.executable, str(Path(child.__file__)), *rest, *common]

    def _alone(self, name: str, rest: Sequence[str]) -> None:
        with (self._output / "logs" / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(self._arguments(rest), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            while process.poll() is None:
                self._say(f"{name}: working")
                time.sleep(0.2)
        if process.returncode:
            raise SystemExit((self._output / "logs" / f"{name}.log").read_text()[-4000:])

    def _start(self, what: str, target: str, seconds: float) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        with (self._output / "logs" / f"{target}.{what}.log").open("ab") as log:
            rest = [what, f"--target={target}", f"--seconds={seconds:.1f}"]
            return subprocess.Popen(
                self._arguments(rest), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def _all(self, what: str, chosen: Sequence[str], seconds: float, patience: float) -> None:
        """Every target, ``jobs`` at a time. A process that dies is started again for the time that is left."""
        waiting = list(chosen)
        running: list[Running] = []
        while waiting or running:
            while waiting and len(running) < self._options.jobs:
                target = waiting.pop(0)
                process = self._start(what, target, seconds)
                running.append(Running(target, process, time.monotonic() + patience))
            time.sleep(0.1)
            for one in list(running):
                code, now = one.process.poll(), time.monotonic()
                if code is None and now > one.end:
                    one.process.kill()
                    one.process.wait()
                    self._broken[one.target] = f"{what} did not end"
                    running.remove(one)
                elif code is not None:
                    running.remove(one)
                    left = one.end - START_SECONDS - now
                    if code and what == "fuzz" and left > 2 and one.restarts < RESTARTS:
                        self._native(one.target, code)
                        running.append(
                            Running(one.target, self._start(what, one.target, left), one.end, one.restarts + 1)
                        )
                    elif code:
                        self._native(one.target, code)
            self._say(
                f"{what}: {len(chosen) - len(waiting) - len(running)} of {len(chosen)} done; " + self._sum(running)
            )

    def _native(self, target: str, code: int) -> None:
        """The process itself ended: a crash below Python, a time-out or too much memory, with libFuzzer's input."""
        found = [path for path in (self._output / "native" / target).glob("*") if path.is_file()]
        for path in found:
            kind = path.name.partition("-")[0]
            child.keep(self._output / "findings" / target, path.read_bytes(), f"process ended with {code}: {kind}")
            path.unlink()
        if not found:
            self._broken[target] = f"ended with {code}, see logs/{target}.*.log"

    def _sum(self, running: Sequence[Running]) -> str:
        states = [self._status(one.target) for one in running]
        count = sum(int(state.get("executions", 0)) for state in states)
        crashes = sum(1 for path in (self._output / "findings").rglob("*.txt"))
        names = ", ".join(one.target for one in running[:4])
        return f"{count} executions in {len(running)} processes, {crashes} findings ({names}…)"

    def _say(self, line: str) -> None:
        now = time.monotonic()
        if now - self._said >= SAY_SECONDS:
            self._said = now
            print(f"[{now - self._began:5.0f} s] {line}", flush=True)

    def _status(self, target: str, kind: str = "") -> dict[str, Any]:
        try:
            value = json.loads((self._output / "status" / f"{target}{kind}.json").read_text())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _rows(self, chosen: Sequence[str]) -> Iterator[dict[str, Any]]:
        for target in chosen:
            fuzzed, confirmed = self._status(target), self._status(target, ".confirmed")
            findings = sorted((self._output / "findings" / target).glob("*.txt"))
            corpus = self._options.corpus / target
            executions, seconds = int(fuzzed.get("executions", 0)), float(fuzzed.get("seconds", 0.0))
            yield {
                "target": target,
                "executions": executions,
                "per_second": round(executions / seconds) if seconds else 0,
                "seeds": sum(1 for _ in (self._output / "seeds" / target).glob("*")),
                "new_units": sum(1 for _ in corpus.glob("*")) if corpus.is_dir() else 0,
                "slowest_s": round(float(confirmed.get("seconds", 0.0)), 3),
                "extra_mb": round(float(confirmed.get("extra_mb", 0.0)), 1),
                "measured": int(confirmed.get("inputs", 0)),
                "peak_mb": int(fuzzed.get("peak_mb", 0)),
                "findings": [path.read_text().strip() for path in findings],
                "broken": self._broken.get(target, "" if executions else "never ran"),
            }

    def _report(self, chosen: Sequence[str]) -> int:
        rows = list(self._rows(chosen))
        head = (
            "target",
            "executions",
            "per_second",
            "seeds",
            "new_units",
            "slowest_s",
            "extra_mb",
            "peak_mb",
            "findings",
        )
        table = [
            head,
            *([str(len(row[name]) if name == "findings" else row[name]) for name in head] for row in rows),
        ]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        total = sum(row["executions"] for row in rows)
        lines.append(f"{len(rows)} targets, {total} executions, {time.monotonic() - self._began:.0f} s")
        lines.append(
            "slowest_s and extra_mb: of suspects and 1 MB inputs, without instrumentation; peak_mb: with it"
        )
        for row in rows:
            for words, count in Counter(row["findings"]).items():
                lines.append(f"FINDING {row['target']}: {words}" + (f" ({count} inputs)" if count > 1 else ""))
            lines += [f"BROKEN {row['target']}: {row['broken']}"] if row["broken"] else []
        text = "\n".join(lines) + "\n"
        (self._output / "report.txt").write_text(text)
        (self._output / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(text, end="", flush=True)
        if any(row["broken"] for row in rows):
            return 2
        return 1 if any(row["findings"] for row in rows) else 0


def _vectors() -> str:
    """The folder of real evidence: inside of the checkout, or beside it; empty where there is none."""
    root = Path(__file__).resolve().parents[2]
    found = (folder / "shared" / "vectors" for folder in (root, root.parent))
    return next((str(folder) for folder in found if folder.is_dir()), "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=float, default=600.0, help="of fuzzing, for each target")
    parser.add_argument("--within", type=float, default=0.0, help="instead: seconds for everything together")
    parser.add_argument(
        "--confirm", type=float, default=CONFIRM_SECONDS, help="seconds of measuring, for each target"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time; 0: all at once")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz/corpus"), help="kept between runs")
    parser.add_argument("--output", type=Path, default=Path("build/fuzz/output"), help="emptied at the start")
    parser.add_argument("--vectors", default=_vectors(), help="folder of real evidence to take seeds from")
    parser.add_argument("--targets", default="", help=argparse.SUPPRESS)  # a test's own
    options = parser.parse_args()
    options.jobs = options.jobs or 1000
    options.output, options.corpus = options.output.resolve(), options.corpus.resolve()
    return Fuzz(options).everything()


if __name__ == "__main__":
    sys.exit(main())
