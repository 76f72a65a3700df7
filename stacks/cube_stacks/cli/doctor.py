# SPDX-License-Identifier: Apache-2.0
"""`cube doctor`: what this host lacks for the local environment, and how to get it.

Each check looks at one thing and never changes anything; `run` prints all of them.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from cube_stacks import edge, records
from cube_stacks.local import ports
from cube_stacks.local.accelerator import probe_kvm
from cube_stacks.state import cache_folder, state_folder

Level = Literal["ok", "note", "bad"]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "swtpm_localca": "swtpm-tools",
    "mmdebstrap": "mmdebstrap",
}
NEEDED_CACHE, NEEDED_STATE = 6 << 30, 1 << 30
_ITERATIONS = 1_000_000  # Pulumi's passphrase crypter (sdk/go/common/resource/config/crypt.go)


@dataclass(frozen=True)
class Finding:
    """One check: `bad` stops the local environment, `note` does not. `todo` says what to do about it."""

    check: str
    level: Level
    words: str
    todo: str = ""


def add(commands: Any) -> None:
    found = commands.add_parser("doctor", help="what this host lacks, and how to get it")
    found.add_argument("--json", action="store_true", help="print JSON")
    found.add_argument("--missing-apt", action="store_true", help="print the Debian packages that are missing only")
    found.add_argument("--listen", default="127.0.0.1:8443", help="where the edge is to listen")
    found.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    if asked.missing_apt:
        print(" ".join(missing_packages(_path())))
        return 0
    findings = list(examine(asked.environment, asked.listen))
    if asked.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            todo = f"; {finding.todo}" if finding.todo else ""
            print(f"{finding.level:<4}  {finding.check:<11} {finding.words}{todo}", flush=True)
    return 1 if any(finding.level == "bad" for finding in findings) else 0


def examine(environment: str, listen: str) -> Iterator[Finding]:
    """All checks, the cheap ones first."""
    yield python(sys.version_info[:3])
    yield packages(missing_packages(_path()))
    yield root(os.geteuid(), shutil.which("sudo"), missing_packages(_path()))
    yield namespaces(os.geteuid())
    yield port(environment, listen)
    yield disk("cache", cache_folder(), NEEDED_CACHE)
    yield disk("state", state_folder(environment), NEEDED_STATE)
    yield from leftovers(cache_folder())
    yield passphrase(state_folder(environment), environment)
    yield kvm()
    yield network(missing_packages(_path()))


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"


def python(version: tuple[int, int, int]) -> Finding:
    text = ".".join(map(str, version))
    if version < (3, 11, 0):
        return Finding("python", "bad", f"Python {text} is too old", "install Python 3.11 or newer")
    return Finding("python", "ok", f"Python {text}")


def missing_packages(path: str) -> list[str]:
    """Debian packages whose programs are not on `path`."""
    return sorted({package for program, package in PACKAGES.items() if shutil.which(program, path=path) is None})


def packages(missing: list[str]) -> Finding:
    if missing:
        listed = " ".join(missing)
        return Finding("packages", "bad", f"missing: {listed}", f"run: apt-get install {listed}")
    return Finding("packages", "ok", "QEMU, swtpm and mmdebstrap are installed")


def root(uid: int, sudo: str | None, missing: list[str]) -> Finding:
    if uid == 0:
        return Finding("root", "ok", "this is root")
    if sudo:
        return Finding("root", "ok", f"{sudo} is used to install packages and to build images")
    level: Level = "bad" if missing else "note"
    words = "neither root nor sudo: packages can't be installed, images can't be built"
    return Finding("root", level, words, "run as root, or install sudo")


def namespaces(uid: int) -> Finding:
    """Whether the sandbox of image builds can be made: root mounts by itself, others need a user namespace."""
    if uid == 0:
        return Finding("sandbox", "ok", "root needs no user namespace")
    try:
        done = subprocess.run(["unshare", "--user", "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("sandbox", "bad", f"unshare can't be run: {error}", "install util-linux")
    if done.returncode:
        words = "users of this host may not make user namespaces, and image builds run in one"
        todo = "run as root, or allow them (sysctl kernel.unprivileged_userns_clone, or AppArmor's restriction)"
        return Finding("sandbox", "bad", words, todo)
    return Finding("sandbox", "ok", "users may make user namespaces")


def port(environment: str, listen: str) -> Finding:
    host, _, number = listen.rpartition(":")
    if not number.isdigit() or not 0 < int(number) < 65536:
        return Finding("port", "bad", f"{listen!r} is no address", "write host:port")
    ours = [
        name
        for name, record in records.all_of(environment, "edges").items()
        if record["inputs"]["listen"] == listen and edge.find(records.folder(environment, "edges", name))
    ]
    if ours:
        return Finding("port", "ok", f"{listen} is this environment's own edge")
    if ports.in_use(host, int(number)):
        todo = f"stop what listens there, or set cube:edge: {{listen: {host}:<port>}}"
        who = ports.holder(int(number)) or "another program"
        return Finding("port", "bad", f"{listen} is in use by {who}", todo)
    return Finding("port", "ok", f"{listen} is free")


def disk(what: str, folder: Path, needed: int) -> Finding:
    free = shutil.disk_usage(folder).free
    words = f"{folder} has {free / 1e9:.1f} GB free"
    if free < needed:
        variable = "XDG_CACHE_HOME" if what == "cache" else "XDG_STATE_HOME"
        return Finding(what, "bad", f"{words}, {needed / 1e9:.1f} GB are needed", f"make room, or set {variable}")
    return Finding(what, "ok", words)


def leftovers(cache: Path) -> Iterator[Finding]:
    """What interrupted builds left: harmless, for it is never used, and the next build removes it."""
    found = [path for kind in cache.iterdir() if kind.is_dir() for path in kind.glob(".*.tmp-*")]
    if found:
        words = f"{len(found)} half-written entries in {cache}"
        yield Finding("leftovers", "note", words, "nothing: the next build makes them anew")


def passphrase(state: Path, environment: str) -> Finding:
    """Whether the environment's passphrase is the one that its stack was made with."""
    settings = state / f"Pulumi.{environment}.yaml"
    salt = re.search(r"^encryptionsalt:\s*(\S+)", _text(settings), re.MULTILINE)
    if salt is None:
        return Finding("passphrase", "ok", "no stack yet")
    phrase = os.environ.get("PULUMI_CONFIG_PASSPHRASE")
    path = Path(os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE") or state / "passphrase")
    if phrase is None:
        if not path.exists():
            todo = f"restore it, or remove {state} to start anew"
            return Finding("passphrase", "bad", f"{path} is missing, but {settings} needs it", todo)
        phrase = _text(path).strip()
    if not fits(phrase, salt[1].strip("\"'")):
        todo = f"restore {path}, or set PULUMI_CONFIG_PASSPHRASE"
        return Finding("passphrase", "bad", f"wrong for the stack in {settings}", todo)
    return Finding("passphrase", "ok", "fits the stack")


def fits(phrase: str, salt: str) -> bool:
    """Whether `phrase` opens Pulumi's `encryptionsalt` (`v1:<salt>:v1:<nonce>:<ciphertext of "pulumi">`)."""
    try:
        version, salt64, message, nonce64, sealed64 = salt.split(":")
        parts = [base64.b64decode(part, validate=True) for part in (salt64, nonce64, sealed64)]
        if (version, message) != ("v1", "v1"):
            return False
        key = PBKDF2HMAC(hashes.SHA256(), 32, parts[0], _ITERATIONS).derive(phrase.encode())
        return AESGCM(key).decrypt(parts[1], parts[2], None) == b"pulumi"
    except (ValueError, InvalidTag):
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def kvm() -> Finding:
    probe = probe_kvm()
    if probe.works:
        return Finding("kvm", "ok", probe.words)
    return Finding("kvm", "note", f"{probe.words}: software emulation is used, which is slower")


def network(missing: list[str]) -> Finding:
    """Whether the host of apt's first source answers; only bad while something must be installed."""
    level: Level = "bad" if missing else "note"
    sites = _output(["apt-get", "indextargets", "--format", "$(SITE)"])
    target = _apt_target(_output(["apt-config", "dump"]), sites)
    if target is None:
        return Finding("network", "note", "apt has no network source", "configure one to install packages")
    try:
        with socket.create_connection(target, 3):
            return Finding("network", "ok", f"apt's source answers ({target[0]}:{target[1]})")
    except OSError as error:
        words = f"apt's source {target[0]}:{target[1]} does not answer: {error}"
        return Finding("network", level, words, "check the network and the proxy settings")


def _apt_target(configuration: str, sites: str) -> tuple[str, int] | None:
    """Host and port that apt talks to: its proxy, else its first network source."""
    proxies = re.findall(r'^Acquire::https?::Proxy "(http[^"]+)"', configuration, re.MULTILINE)
    for url in (*proxies, *sites.splitlines()):
        try:
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") and parts.hostname:
                return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            continue
    return None


def _output(command: Iterable[str]) -> str:
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
