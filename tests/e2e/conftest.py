# SPDX-License-Identifier: Apache-2.0
"""A whole deployment for the tests: the project in a folder of its own, its own state, the shared caches."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ("Pulumi.yaml", "__main__.py", "domains", "policies", "tools", "requirements.lock")
SUCH = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Deployment:
    """The project's files in `project`, its state below `home`; commands run as a user would run them."""

    project: Path
    home: Path
    port: int
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.home / "cube-confidential" / "local"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")}
        binaries = str(Path(sys.executable).parent)
        return {**kept, "XDG_STATE_HOME": str(self.home), "PATH": f"{binaries}{os.pathsep}{kept['PATH']}"}

    def run(self, *command: str, timeout: float = 240, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            list(command),
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check:
            said = f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
            assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{said}"
        return done

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command that the test will interrupt; in a process group of its own, as a terminal would."""
        process = subprocess.Popen(
            list(command),
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def local(self, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "tools/local.py", command, **options)

    def pulumi(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`eval "$(make -s env)"; pulumi …`"""
        script = 'eval "$("$0" tools/local.py env)" && exec pulumi "$@"'
        return self.run("bash", "-c", script, sys.executable, *arguments, **options)

    def up(self, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.pulumi("up", "--yes", "--skip-preview", "--non-interactive", "--color", "never", **options)

    def cube(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        script = 'eval "$("$0" tools/local.py env)" && exec cube "$@"'
        return self.run("bash", "-c", script, sys.executable, *arguments, **options)

    def configure(self, path: str, value: str) -> None:
        self.pulumi("config", "set", "--path", path, value)

    def outputs(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.local("outputs").stdout)
        return found

    def domain(self, name: str) -> dict[str, Any]:
        return next(domain for domain in self.outputs()["domains"] if domain["name"] == name)

    def token(self, domain: str, *options: str) -> str:
        return self.cube("token", "issue", domain, *options).stdout.strip().splitlines()[-1]

    def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Any = None,
        ca: str | None = None,
        port: int | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> Reply:
        """One request to the edge as a client sends it: TLS by the environment's CA, hostname checked."""
        trust = ssl.create_default_context(cadata=ca or (self.state / "ca.pem").read_text())
        connection = http.client.HTTPSConnection("localhost", port or self.port, context=trust, timeout=timeout)
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def ask(self, domain: Mapping[str, Any], token: str, **options: Any) -> Reply:
        body = {"model": domain["models"][0], "max_tokens": 12, **SUCH}
        return self.call("POST", f"/{domain['id']}/v1/chat/completions", token=token, body=body, **options)

    def processes(self) -> list[str]:
        """Command lines of every process that names this deployment's state or project."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    where = str((entry / "cwd").readlink())
                except OSError:
                    continue
                if str(self.home) in line or where.startswith((str(self.home), str(self.project))):
                    found.append(f"{entry.name} {line}")
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_deployment(folder: Path) -> Deployment:
    project, home = folder / "project", folder / "state"
    project.mkdir(parents=True)
    home.mkdir()
    for name in PROJECT:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, project / name)
    (project / ".venv").symlink_to(ROOT / ".venv")
    made = Deployment(project, home, free_port())
    made.configure("cube:edge.listen", f"127.0.0.1:{made.port}")
    return made


def put_away(deployment: Deployment) -> None:
    for process in deployment.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    deployment.local("down", check=False)
    end = time.monotonic() + 10
    while deployment.processes() and time.monotonic() < end:
        time.sleep(0.2)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One deployment for a module's tests, in order; nothing of it runs afterwards."""
    made = new_deployment(tmp_path_factory.mktemp("deployment"))
    yield made
    put_away(made)
    assert made.processes() == []
