# SPDX-License-Identifier: Apache-2.0
"""`make bench`: seconds of each phase of the local environment, several runs, median, beside the project's limits.

Everything is cached before the first run. Starts from nothing running, and leaves nothing running.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import chat
import environment
import preflight
from cube_images import build, rootfs
from cube_stacks import keys, records, tokens
from cube_stacks.provider import attestation_gate
from environment import ENVIRONMENT, ROOT
from local import PROMPT, read_outputs

LIMITS: Final = {
    "up to a verdict": 32,
    "up to the first token": 45,
    "no-op pulumi up": 4,
    "gate, machine up": 2,
    "measured-image predict": 1,
    "image, agent changed": 20,
}
"""Seconds on 2 cores without KVM."""

TYPES: Final = {
    "MeasuredImage": "image",
    "LocalMachine": "machine",
    "AttestationGate": "gate",
    "DomainSet": "domains",
}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def engine(variables: dict[str, str], command: str, on_event: Callable[[dict[str, Any]], None]) -> float:
    """Run an engine command to its end; returns its seconds. Raises SystemExit when it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        ["pulumi", command, "--yes", "--skip-preview", "--json", "--stack", ENVIRONMENT],
        cwd=ROOT,
        env={**os.environ, **variables, "PULUMI_ENABLE_STREAMING_JSON_PREVIEW": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    errors: list[str] = []
    for line in process.stdout or ():
        event = json.loads(line)
        diagnostic = event.get("diagnosticEvent", {})
        if diagnostic.get("severity") == "error":
            errors.append(diagnostic["message"])
        on_event(event)
    if process.wait():
        raise SystemExit(f"pulumi {command} failed: {' '.join(errors)}")
    return time.monotonic() - began


def once(variables: dict[str, str]) -> dict[str, float]:
    """One run from nothing to an answer and back to nothing."""
    found: dict[str, float] = {}
    began = time.monotonic()
    started: dict[str, float] = {}

    def collect(event: dict[str, Any]) -> None:
        for kind in ("resourcePreEvent", "resOutputsEvent"):
            metadata = event.get(kind, {}).get("metadata", {})
            name = TYPES.get(str(metadata.get("type", "")).rpartition(":")[2])
            if name is None or metadata.get("op") in ("read", "refresh"):
                continue
            if kind == "resourcePreEvent":
                started[name] = time.monotonic()
            elif name in started:
                found[f"  {name}"] = time.monotonic() - started[name]
                if name == "gate":
                    found["up to a verdict"] = time.monotonic() - began

    engine(variables, "up", collect)
    outputs = read_outputs(variables)
    domain = outputs["domains"][0]
    reference = keys.domain_key(ENVIRONMENT, domain["name"])
    token, _ = tokens.issue(
        keys.open_key(reference), ENVIRONMENT, domain["id"], tokens.SCOPES, timedelta(minutes=10), datetime.now(UTC)
    )
    base = f"{outputs['endpoint'].rstrip('/')}/{domain['id']}/v1"
    parts = chat.ask(base, outputs["ca"], token, domain["models"][0], PROMPT, say)
    next(parts)
    found["up to the first token"] = time.monotonic() - began
    for _ in parts:
        continue
    found["up to the whole answer"] = time.monotonic() - began
    found["gate, machine up"] = gate_again()
    found["no-op pulumi up"] = engine(variables, "up", lambda _: None)
    began = time.monotonic()
    subprocess.run(
        [ROOT / ".venv" / "bin" / "measured-image", "predict"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    found["measured-image predict"] = time.monotonic() - began
    found["destroy"] = engine(variables, "destroy", lambda _: None)
    found["image, agent changed"] = rebuilt_image()
    return found


def gate_again() -> float:
    """Evidence, verdict and renewed lease of the machine that is up, without the engine."""
    ((name, record),) = records.all_of(ENVIRONMENT, "gates").items()
    inputs, outputs = record["inputs"], record["outputs"]
    began = time.monotonic()
    if attestation_gate.reverify(name, inputs["instanceId"], inputs, outputs) is None:
        raise SystemExit("the machine went away while its gate was measured")
    return time.monotonic() - began


def rebuilt_image() -> float:
    """Build the image with an agent that differs by a comment; the image is removed again."""
    real = rootfs.own_sources
    with tempfile.TemporaryDirectory() as name:
        changed = Path(name) / "agent.py"

        def with_change(modules: Iterable[str]) -> dict[str, Path]:
            found = real(modules)
            changed.write_bytes(found["cube_proxy/agent.py"].read_bytes() + f"# {time.time_ns()}\n".encode())
            return {**found, "cube_proxy/agent.py": changed}

        rootfs.own_sources = with_change
        try:
            began = time.monotonic()
            image = build.build("local", keys.open_key(keys.environment_key(ENVIRONMENT, "image")))
            seconds = time.monotonic() - began
        finally:
            rootfs.own_sources = real
    shutil.rmtree(image.folder)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    preflight.install(say)
    variables = environment.prepared(say)
    environment.release_stale_lock(variables, say)
    say("warming the caches")
    engine(variables, "destroy", lambda _: None)
    every = []
    try:
        engine(variables, "up", lambda _: None)
        engine(variables, "destroy", lambda _: None)
        for run in range(runs):
            say(f"run {run + 1} of {runs}")
            every.append(once(variables))
    except BaseException:
        say("taking down what still runs")
        engine(variables, "destroy", lambda _: None)
        raise
    print(f"{'seconds':<28}{'median':>8}{'limit':>8}   runs")
    for phase in every[0]:
        values = [run[phase] for run in every if phase in run]
        limit = LIMITS.get(phase.strip())
        listed = "  ".join(f"{value:.1f}" for value in values)
        print(f"{phase:<28}{statistics.median(values):>8.1f}{limit or '':>8}   {listed}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
