# SPDX-License-Identifier: Apache-2.0
"""Programs built from Go modules that go.mod and go.sum pin, kept in the user's cache by what they are made of.

Modules come through the Go module proxy that the host is configured for.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cube_images import gotoolchain
from cube_images.errors import ImageError
from cube_images.paths import entry, require_space
from cube_images.run import run

BUILD_SECONDS: Final = 1800
SAY_SECONDS: Final = 2
ENVIRONMENT: Final = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
HINT: Final = "the modules come from the Go module proxy that this host is configured for; is it reachable?"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Program:
    """The main package `package` as the file `name`; `module` is the folder of go.mod, go.sum and, if any, sources.

    `what` and `takes` are for people, `space` is in bytes: modules, build cache and the result.
    """

    name: str
    what: str
    module: Path
    package: str
    takes: str
    space: int
    tags: str = ""
    ldflags: str = "-s -w"

    def digest(self) -> str:
        """32 hex digits over all that the program is made of."""
        files = [self.module / "go.mod", self.module / "go.sum", *sorted(self.module.glob("*.go"))]
        return digest(*(file.read_bytes() for file in files), self.tags, self.ldflags)

    def build(self, folder: Path, say: Say) -> None:
        """Build into `folder`, with progress. Raises `ImageError`."""
        require_space(folder, self.space, f"building {self.what}")
        began = last = time.monotonic()
        fetched = compiled = 0

        def tell() -> None:
            nonlocal last
            if time.monotonic() - last >= SAY_SECONDS:
                last = time.monotonic()
                seconds = f"{last - began:.0f} s"
                say(f"building {self.what}: {fetched} modules fetched, {compiled} packages compiled ({seconds})")

        def line(text: str) -> None:
            nonlocal fetched, compiled
            if text.startswith("go: downloading"):
                fetched += 1
            else:
                compiled += 1
            tell()

        say(f"building {self.what} from its Go modules; {self.takes}, once")
        flags = ["-v", "-trimpath", "-tags", self.tags, "-ldflags", self.ldflags]
        run(
            [self._go(), "build", *flags, "-o", folder / self.name, self.package],
            cwd=self.module,
            env=ENVIRONMENT,
            on_line=line,
            on_tick=tell,
            timeout=BUILD_SECONDS,
            hint=HINT,
        )

    def sources(self, module: str) -> Path:
        """Where the sources of one of its modules lie; read-only. Raises `ImageError`."""
        found = run(
            [self._go(), "list", "-m", "-f", "{{.Dir}}", module],
            cwd=self.module,
            env=ENVIRONMENT,
            timeout=60,
            hint=HINT,
        )
        return Path(found.text)

    def _go(self) -> Path:
        found = re.search(r"^go (\S+)$", (self.module / "go.mod").read_text(), re.MULTILINE)
        if found is None:
            raise ImageError(
                f"{self.module / 'go.mod'} names no Go version", "restore the file from the repository"
            )
        return gotoolchain.find(found[1])


def digest(*parts: bytes | str) -> str:
    """32 hex digits that tell apart any two lists of parts."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:32]


def whole(folder: Path, names: Sequence[str], make: Callable[[Path], None], say: Say) -> Path:
    """The cache entry `folder` with the programs `names`, made by `make` if it is not there or misses one."""
    if folder.is_dir() and not all(os.access(folder / name, os.X_OK) for name in names):
        say(f"{folder} is not whole; building it anew")
        shutil.rmtree(folder)
    return entry(folder, make)
