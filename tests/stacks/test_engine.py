# SPDX-License-Identifier: Apache-2.0
"""Our provider base under the real engine: file backend, throwaway state, a provider found by `plugins:`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.engine, pytest.mark.slow]

PROGRAM = """
import pulumi
from cube_stacks.resources import Edge, EdgeArgs
config = pulumi.Config()
edge = Edge("edge", EdgeArgs(
    listen=config.require("listen"),
    members=[],
    ca=config.require_secret("ca"),
    hostname=config.get("hostname") or "localhost",
))
dependant = Edge("dependant", EdgeArgs(listen=edge.endpoint, members=[], ca="open", hostname="localhost"))
pulumi.export("endpoint", edge.endpoint)
"""


@pytest.fixture(scope="session")
def engine() -> Path:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "engine.py"], stdout=subprocess.PIPE, text=True, check=True, timeout=1800
    )
    return Path(done.stdout.strip())


class Project:
    """A Pulumi project of its own, with its own state."""

    def __init__(self, folder: Path, engine: Path) -> None:
        self.folder = folder
        bin = folder / "bin"
        bin.mkdir(parents=True)
        (folder / "state").mkdir()
        plugin = bin / "pulumi-resource-cube-confidential"
        plugin.write_text(f"#!{sys.executable}\n" + (Path(__file__).parent / "engine_world.py").read_text())
        plugin.chmod(0o755)
        self.write(
            {
                "name": "cube",
                "runtime": "python",
                "main": "__main__.py",
                "plugins": {"providers": [{"name": "cube-confidential", "path": "bin"}]},
            },
            PROGRAM,
        )
        self.world(exists={}, refuse="", sick=[], slow=0)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{engine}:{os.environ['PATH']}",
            "PULUMI_HOME": str(folder / "home"),
            "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "correct horse",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "NO_COLOR": "1",
        }

    def write(self, project: Mapping[str, Any], program: str) -> None:
        (self.folder / "Pulumi.yaml").write_text(json.dumps(project))
        (self.folder / "__main__.py").write_text(program)

    def world(self, **more: Any) -> None:
        path = self.folder / "bin" / "world.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, **more}))

    def calls(self) -> list[str]:
        """What the provider was asked since the last look."""
        path = self.folder / "bin" / "calls.txt"
        found = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def run(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            ["pulumi", "--non-interactive", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def up(self, fails: bool = False) -> str:
        return self.run("up", "--yes", "--skip-preview", fails=fails)

    def resources(self) -> dict[str, dict[str, Any]]:
        """Resources in the exported state, by name."""
        state = json.loads(self.run("stack", "export"))
        return {entry["urn"].split("::")[-1]: entry for entry in state["deployment"].get("resources", [])}


@pytest.fixture
def project(tmp_path: Path, engine: Path) -> Iterator[Project]:
    made = Project(tmp_path / "project", engine)
    made.run("stack", "init", "test")
    made.run("config", "set", "listen", "127.0.0.1:1")
    made.run("config", "set", "--secret", "ca", "very secret pem")
    yield made
    shutil.rmtree(made.folder / "home", ignore_errors=True)


def test_preview_of_a_clean_stack_does_nothing(project: Project) -> None:
    shown = project.run("preview")
    assert "to create" in shown
    assert project.calls() == []
    assert project.resources() == {}


def test_a_refused_create_stores_nothing_and_stops_dependants(project: Project) -> None:
    project.world(refuse="tpm.pcr.mismatch: PCR 11 differs; rebuild the image")
    shown = project.up(fails=True)
    assert "tpm.pcr.mismatch: PCR 11 differs; rebuild the image" in shown
    assert "Traceback" not in shown
    assert project.calls() == ["create"]
    assert [name for name in project.resources() if name in ("edge", "dependant")] == []
    project.world(refuse="")
    assert "2 created" in project.up() or "+ 2" in project.up()


def test_health_is_read_before_every_update_and_reasons_are_kept(project: Project) -> None:
    project.up()
    assert project.calls() == ["create", "create"]
    assert "unchanged" in project.up()
    assert project.calls() == ["read", "read"]

    project.world(sick=["lease.expired: renew it"], refuse="still expired")
    shown = project.up(fails=True)
    assert "lease.expired: renew it" in shown
    assert "still expired" in shown
    assert "update" in project.calls()
    project.run("refresh", "--yes", "--skip-preview")
    assert project.resources()["edge"]["initErrors"] == ["lease.expired: renew it"]

    project.world(refuse="")
    project.up()
    assert "initErrors" not in project.resources()["edge"]
    assert project.resources()["edge"]["outputs"]["endpoint"] == "https://127.0.0.1:1"


def test_what_is_gone_is_made_anew(project: Project) -> None:
    project.up()
    project.world(exists={})
    project.calls()
    project.up()
    assert "create" in project.calls()
    assert project.resources()["edge"]["id"] == "edge-1"


def test_secrets_are_not_in_state_output_or_preview(project: Project) -> None:
    shown = project.run("preview", "--diff") + project.up() + project.run("stack", "export")
    assert "very secret" not in shown
    state = project.resources()["edge"]
    for half in ("inputs", "outputs"):
        assert "very secret" not in json.dumps(state[half])
    assert "ciphertext" in state["inputs"]["ca"]
    files = [path for path in (project.folder / "state").rglob("*") if path.is_file()]
    assert files
    assert not any(b"very secret" in path.read_bytes() for path in files)


def test_a_changed_name_replaces_and_destroy_removes(project: Project) -> None:
    project.up()
    project.calls()
    project.run("config", "set", "hostname", "other")
    assert "replace" in project.run("preview")
    project.up()
    calls = project.calls()
    assert calls.index("delete") < calls.index("create")  # ports are free before the new one takes them
    project.run("destroy", "--yes", "--skip-preview")
    assert project.resources() == {}


def test_a_program_error_is_shown_once_and_plainly(project: Project) -> None:
    (project.folder / "__main__.py").write_text("import pulumi\nraise pulumi.RunError('say what to do')\n")
    shown = project.up(fails=True)
    assert "say what to do" in shown
    assert "Traceback" not in shown
    (project.folder / "__main__.py").write_text("def broken():\n    return 1 / 0\nbroken()\n")
    shown = project.up(fails=True)
    assert "ZeroDivisionError" in shown
    assert "runpy" not in shown  # only the user's frames
    assert "exit status" not in shown


def test_a_missing_virtualenv_is_named(project: Project) -> None:
    settings = json.loads((project.folder / "Pulumi.yaml").read_text())
    settings["runtime"] = {"name": "python", "options": {"virtualenv": "venv"}}
    (project.folder / "Pulumi.yaml").write_text(json.dumps(settings))
    assert "venv/bin/python is not there" in project.up(fails=True)


def processes(folder: Path) -> list[int]:
    """Processes that have the folder in their command line or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_work_leaves_no_process_and_the_next_run_goes_on(
    project: Project, number: signal.Signals
) -> None:
    project.world(slow=60)
    running = subprocess.Popen(
        ["pulumi", "--non-interactive", "up", "--yes", "--skip-preview"],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 30
    while project.calls() != ["create"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    running.send_signal(number)
    running.wait(timeout=30)
    end = time.monotonic() + 10
    while processes(project.folder) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes(project.folder) == []
    project.world(slow=0)
    if number == signal.SIGKILL:
        project.run("cancel", "--yes")  # the lock of a killed engine
    project.up()
    assert "edge" in project.resources()
