# SPDX-License-Identifier: Apache-2.0
"""Find Pulumi's engine: the official CLI on PATH when its version fits, else one built from its Go modules.

The build is pinned by tools/pulumi/go.sum, takes about 3 minutes on 2 cores and is kept in the user's cache. Prints
the folder that must be on PATH, which holds `pulumi` and `pulumi-language-python`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import gobuild
from cube_images.errors import ImageError
from cube_images.paths import cache_dir
from gobuild import Program, Say

HERE: Final = Path(__file__).resolve().parent
MODULE: Final = HERE / "pulumi"
SDK: Final = "github.com/pulumi/pulumi/sdk/v3"
VERSION: Final = (3, 259, 0)
FILES: Final = ("pulumi", "pulumi-language-python-exec", "pulumi-language-python")
LDFLAGS: Final = f"-s -w -X {SDK}/go/common/version.Version=v{'.'.join(map(str, VERSION))}"
PROGRAM: Final = Program(
    name=FILES[0],
    what="Pulumi's engine",
    module=MODULE,
    package="github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
    takes="about 3 minutes on 2 cores",
    space=4_000_000_000,
    tags="osusergo,grpcnotrace",
    ldflags=LDFLAGS,
)


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
    engine = PROGRAM.digest()
    home = cache_dir() / "pulumi"

    def assemble(folder: Path) -> None:
        made = gobuild.whole(home / f"engine-{engine}", FILES[:2], lambda into: _build(into, say), say)
        for name in FILES[:2]:
            # Hard links: the engine looks for language hosts beside its own file.
            os.link(made / name, folder / name)
        target = folder / FILES[2]
        shutil.copyfile(host, target)
        target.chmod(0o755)

    return gobuild.whole(home / gobuild.digest(engine, host.read_bytes()), FILES, assemble, say)


def _build(folder: Path, say: Say) -> None:
    PROGRAM.build(folder, say)
    script = folder / FILES[1]
    shutil.copyfile(PROGRAM.sources(SDK) / "python" / "cmd" / script.name, script)
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
