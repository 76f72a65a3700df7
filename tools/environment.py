# SPDX-License-Identifier: Apache-2.0
"""The local environment of this checkout for Pulumi: where its state and passphrase are, and a stack to work on.

Everything that Pulumi writes is in the user's state folder. It insists on a file Pulumi.<stack>.yaml beside
Pulumi.yaml; that one is a link into the state folder, and git ignores it.
"""

import json
import os
import secrets
import shlex
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import engine
import yaml  # type: ignore[import-untyped]
from cube_stacks.config import DEFAULT_LISTEN, PROJECT
from cube_stacks.state import state_folder, write_atomically

ROOT: Final = Path(__file__).resolve().parent.parent
ENVIRONMENT: Final = "local"
LINK: Final = ROOT / f"Pulumi.{ENVIRONMENT}.yaml"

Say = Callable[[str], None]


class EnvironmentProblem(Exception):
    """What is in the way of using the environment, and what to do."""


def folder() -> Path:
    """The environment's state folder."""
    return state_folder(ENVIRONMENT)


def variables(say: Say) -> dict[str, str]:
    """Environment variables with which `pulumi` works on this checkout; PATH is complete."""
    home = folder()
    return {
        "PATH": os.pathsep.join([str(ROOT / ".venv" / "bin"), str(engine.find(say)), os.environ.get("PATH", "")]),
        "PULUMI_HOME": str(home / "pulumi" / "home"),
        "PULUMI_BACKEND_URL": f"file://{home / 'pulumi' / 'backend'}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(home / "passphrase"),
        "PULUMI_STACK": ENVIRONMENT,
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }


def exports(say: Say) -> str:
    """The variables as lines for a shell's `eval`."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in prepared(say).items())


def prepared(say: Say) -> dict[str, str]:
    """`variables`, after making what they name: passphrase, backend folder, link and stack."""
    found = variables(say)
    home = folder()
    backend = home / "pulumi" / "backend"
    backend.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = home / LINK.name
    passphrase = home / "passphrase"
    if not passphrase.exists():
        if settings.exists():
            raise EnvironmentProblem(
                f"{passphrase} is missing, but {settings} was encrypted with it; restore it, or remove {home} "
                "to start anew (end the machine's processes first)"
            )
        write_atomically(passphrase, secrets.token_urlsafe(32).encode() + b"\n", 0o600)
    if not LINK.is_symlink():
        if LINK.exists():
            raise EnvironmentProblem(
                f"{LINK} is a file of yours; move it to {settings}, which the environment uses instead"
            )
        LINK.symlink_to(settings)
    elif LINK.readlink() != settings:
        LINK.unlink()
        LINK.symlink_to(settings)
    if not (backend / ".pulumi" / "stacks" / PROJECT / f"{ENVIRONMENT}.json").exists():
        settings.touch(0o600)
        pulumi(found, "stack", "init", ENVIRONMENT, "--non-interactive")
    return found


def listen() -> str:
    """Where the environment's edge is configured to listen."""
    try:
        settings: Any = yaml.safe_load(LINK.read_text()) or {}
        edge = settings["config"][f"{PROJECT}:edge"]
        return str(edge["listen"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return DEFAULT_LISTEN


def pulumi(variables: dict[str, str], *arguments: str) -> str:
    """Run a short Pulumi command; returns its standard output. Raises EnvironmentProblem with what it said."""
    done = subprocess.run(
        ["pulumi", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise EnvironmentProblem(
            f"pulumi {' '.join(arguments[:2])} failed: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def release_stale_lock(variables: dict[str, str], say: Say) -> None:
    """Take away the lock that a killed engine left; raises EnvironmentProblem while another engine is at work."""
    for lock in (folder() / "pulumi" / "backend" / ".pulumi" / "locks").rglob("*.json"):
        try:
            holder = json.loads(lock.read_text())
            pid, host = int(holder["pid"]), str(holder["hostname"])
        except (OSError, ValueError, KeyError, TypeError):
            pid, host = 0, socket.gethostname()  # half-written: its writer is gone
        if host != socket.gethostname():
            raise EnvironmentProblem(f"pulumi process {pid} on {host} works on this environment; wait for it")
        if _is_pulumi(pid):
            raise EnvironmentProblem(f"pulumi process {pid} works on this environment; wait for it, or end it")
        say("an earlier pulumi was killed; removing its lock")
        pulumi(variables, "cancel", "--yes", "--stack", ENVIRONMENT)
        lock.unlink(missing_ok=True)


def _is_pulumi(pid: int) -> bool:
    try:
        return pid > 0 and b"pulumi" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
