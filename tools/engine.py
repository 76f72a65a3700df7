# SPDX-License-Identifier: Apache-2.0
"""Find Pulumi's engine: the official CLI on PATH when its version fits, else one built from its Go modules.

The build is pinned by tools/pulumi/go.sum, takes about 3 minutes on 2 cores and is kept in the user's cache. Prints
the folder that must be on PATH, which holds `pulumi` and `pulumi-language-python`.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cube_images import gotoolchain
from cube_images.errors import ImageError
from cube_images.paths import cache_dir, entry, require_space
from cube_images.run import run

HERE: Final = Path(__file__).resolve().parent
MODULE: Final = HERE / "pulumi"
PACKAGE: Final = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
SDK: Final = "github.com/pulumi/pulumi/sdk/v3"
VERSION: Final = (3, 259, 0)
FILES: Final = ("pulumi", "pulumi-language-python-exec", "pulumi-language-python")
TAGS: Final = "osusergo,grpcnotrace"
LDFLAGS: Final = f"-s -w -X {SDK}/go/common/version.Version=v{'.'.join(map(str, VERSION))}"
BUILD_BYTES: Final = 4_000_000_000  # modules, build cache and the result
BUILD_SECONDS: Final = 1800
SAY_SECONDS: Final = 2

Say = Callable[[str], None]


def official() -> Path | None:
    """Folder of the official CLI on PATH, when it is at least our version, of its major, and whole."""
    program = shutil.which("pulumi")
    if program is None or shutil.which("pulumi-language-python-exec") is None:
        return None
    folder = Path(program).resolve().parent
    if folder.is_relative_to(cache_dir()) or not fits(_version(program)):
        return None
    return folder


def fits(version: str) -> bool:
    """Whether an engine of this version (such as "v3.259.1") can serve the SDK that we lock."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        return False
    numbers = tuple(int(part) for part in found.groups())
    return numbers[0] == VERSION[0] and numbers >= VERSION


def _version(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "version"],
            env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def built(say: Say) -> Path:
    """Folder in the cache with the engine, our language host and the SDK's exec script; built if it isn't there."""
    host = HERE / "language_host.py"
    engine = _digest((MODULE / "go.mod").read_bytes(), (MODULE / "go.sum").read_bytes(), TAGS, LDFLAGS)
    home = cache_dir() / "pulumi"

    def assemble(folder: Path) -> None:
        made = entry(home / f"engine-{engine}", lambda into: _build(into, say))
        for name in FILES[:2]:
            # Hard links: the engine looks for language hosts beside its own file.
            os.link(made / name, folder / name)
        target = folder / FILES[2]
        shutil.copyfile(host, target)
        target.chmod(0o755)

    folder = home / _digest(engine, host.read_bytes())
    for kept, names in ((home / f"engine-{engine}", FILES[:2]), (folder, FILES)):
        if kept.is_dir() and not all(os.access(kept / name, os.X_OK) for name in names):
            say(f"{kept} is not whole; building it anew")
            shutil.rmtree(kept)
    return entry(folder, assemble)


def _digest(*parts: bytes | str) -> str:
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:32]


def _build(folder: Path, say: Say) -> None:
    require_space(folder, BUILD_BYTES, "building Pulumi's engine")
    found = re.search(r"^go (\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ImageError(f"{MODULE / 'go.mod'} names no Go version", "restore the file from the repository")
    go = gotoolchain.find(found[1])
    environment = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    hint = "the modules come from the Go module proxy that this host is configured for; is it reachable?"
    began = last = time.monotonic()
    fetched = compiled = 0

    def tell() -> None:
        nonlocal last
        if time.monotonic() - last >= SAY_SECONDS:
            last = time.monotonic()
            seconds = f"{last - began:.0f} s"
            say(f"building Pulumi's engine: {fetched} modules fetched, {compiled} packages compiled ({seconds})")

    def line(text: str) -> None:
        nonlocal fetched, compiled
        if text.startswith("go: downloading"):
            fetched += 1
        else:
            compiled += 1
        tell()

    say("building Pulumi's engine from its Go modules; about 3 minutes on 2 cores, once")
    run(
        [go, "build", "-v", "-trimpath", "-tags", TAGS, "-ldflags", LDFLAGS, "-o", folder / FILES[0], PACKAGE],
        cwd=MODULE,
        env=environment,
        on_line=line,
        on_tick=tell,
        timeout=BUILD_SECONDS,
        hint=hint,
    )
    sdk = run([go, "list", "-m", "-f", "{{.Dir}}", SDK], cwd=MODULE, env=environment, timeout=60, hint=hint).text
    script = folder / FILES[1]
    shutil.copyfile(Path(sdk) / "python" / "cmd" / script.name, script)
    script.chmod(0o755)
    if not fits(_version(str(folder / FILES[0]))):
        raise ImageError("the engine that was built does not run", f"delete {cache_dir() / 'pulumi'} and try again")


def find(say: Say) -> Path:
    """The folder to put on PATH. Raises `ImageError`."""
    return official() or built(say)


def main() -> int:
    try:
        folder = find(lambda line: print(line, file=sys.stderr, flush=True))
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
