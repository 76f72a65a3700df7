# SPDX-License-Identifier: Apache-2.0
"""Make .venv from requirements.lock, every package by version and hash, with the rooms installed in place.

Runs with the host's own python3, before anything is installed: standard library only. Does nothing when the
environment is as the lock and the pyproject files say.
"""

import hashlib
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv"
STAMP = HOME / "cube-confidential.key"
LOCK = ROOT / "requirements.lock"
ROOMS = ("attestation", "images", "proxy", "stacks", "templates", ".")
MINIMUM = (3, 11)
SAY_SECONDS = 2
HINT = "python3-venv must be installed, and the package index that pip is configured for reachable"


def key() -> str:
    """Identity of what the environment must hold, and of where it is: scripts in it name their interpreter."""
    whole = hashlib.sha256(f"{ROOT} {sys.version}".encode())
    for path in (LOCK, *(ROOT / room / "pyproject.toml" for room in ROOMS)):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def whole() -> bool:
    return STAMP.is_file() and STAMP.read_text() == key() and _runs()


def _runs() -> bool:
    python = HOME / "bin" / "python"
    return python.exists() and subprocess.run([python, "-c", ""], check=False).returncode == 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def make() -> None:
    """Create or complete the environment. Raises Unmakeable."""
    began = time.monotonic()
    STAMP.unlink(missing_ok=True)
    if not _runs():
        shutil.rmtree(HOME, ignore_errors=True)
        say("making the virtual environment .venv")
        watch([sys.executable, "-m", "venv", str(HOME)], "making the virtual environment")
    python = str(HOME / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off"]
    watch([*pip, "--require-hashes", "--requirement", str(LOCK)], "installing the locked packages")
    rooms = [word for room in ROOMS for word in ("--editable", f"./{room}")]
    watch([*pip, "--no-deps", "--no-build-isolation", *rooms], "installing the rooms of this checkout")
    STAMP.write_text(key())
    say(f"the virtual environment is ready ({time.monotonic() - began:.0f} s)")


class Unmakeable(Exception):
    """A step failed; the message holds the end of what it said."""


def watch(command: list[str], what: str) -> None:
    """Run a step, with a line every 2 s that says where it is."""
    lines: list[str] = []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def collect() -> None:
        lines.extend(iter(process.stdout.readline, "") if process.stdout else ())

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    began = time.monotonic()
    while True:
        try:
            status = process.wait(SAY_SECONDS)
            break
        except subprocess.TimeoutExpired:
            at = lines[-1].strip()[:70] if lines else ""
            say(f"{what} ({time.monotonic() - began:.0f} s) {at}")
    reader.join()
    if status:
        raise Unmakeable("".join(lines[-12:]).strip())


def main() -> int:
    if sys.version_info < MINIMUM:
        say(f"error: Python {MINIMUM[0]}.{MINIMUM[1]} or newer is needed, this is {sys.version}")
        return 1
    if whole():
        return 0
    try:
        make()
    except KeyboardInterrupt:
        return 130
    except (OSError, Unmakeable) as error:
        say(f"{error}\nerror: the virtual environment could not be made (see above); {HINT}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
