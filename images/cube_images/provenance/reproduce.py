# SPDX-License-Identifier: Apache-2.0
"""Rebuild an image from its lock and compare bit for bit: the check that needs nobody's word."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation import jcs

from cube_images import build, debian, lock
from cube_images.errors import ImageError
from cube_images.paths import cache_dir
from cube_images.provenance import compare, described
from cube_images.provenance.described import Described
from cube_images.provenance.inventory import Say
from cube_images.run import is_root, run
from cube_images.wheels import sha256_file

# What the rebuild takes from the cache: inputs, each checked against its locked hash when it is used.
_INPUTS = ("apt", "debs", "go", "locks", "wheels")
# What was made of inputs and takes minutes to make: made anew only on request.
_MADE = ("ollama", "parts", "trees")
_FILES = ("disk.img", "uki.efi", "OVMF_CODE.fd", "OVMF_VARS.fd")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """`same` says whether every byte is; `lines` what was compared, or what differs, in words."""

    same: bool
    lines: tuple[str, ...]


@contextmanager
def _cache(clean: bool) -> Iterator[Path]:
    """A cache of its own with the inputs of the real one; gone afterwards."""
    parent = cache_dir() / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="rebuild-", dir=parent))
    try:
        home = folder / "cube-confidential"
        home.mkdir()
        for name in _INPUTS if clean else (*_INPUTS, *_MADE):
            (cache_dir() / name).mkdir(exist_ok=True)
            (home / name).symlink_to(cache_dir() / name)
        yield folder
    finally:
        if is_root():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            run(["rm", "-rf", folder], root=True)


def _key(folder: Path) -> Path:
    """A key for a manifest that nobody keeps."""
    path = folder / "key.pem"
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.touch(0o600)
    path.write_bytes(pem)
    return path


def first_difference(one: Path, other: Path) -> int | None:
    """Offset of the first byte in which two files differ (the end of the shorter one counts), None if none does."""
    with one.open("rb") as left, other.open("rb") as right:
        at = 0
        while True:
            a, b = left.read(_CHUNK), right.read(_CHUNK)
            if a != b:
                return at + next(
                    (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
                )
            if not a:
                return None
            at += len(a)


def judge(image: Described, rebuilt: Described) -> Outcome:
    """Compare an image with its rebuild: files that are at hand byte by byte, the others by their digests."""
    expected = {
        "disk.img": image.payload["image"],
        "uki.efi": image.payload["uki"],
        "OVMF_CODE.fd": image.payload["firmware"]["code"],
        "OVMF_VARS.fd": image.payload["firmware"]["vars"],
    }
    good: list[str] = []
    bad: list[str] = []
    for name in _FILES:
        made = rebuilt.file(name)
        if image.has(name):
            at = first_difference(image.file(name), made)
            (good if at is None else bad).append(
                f"{name}: the same byte for byte" if at is None else f"{name}: differs from offset {at} on"
            )
        if (digest := f"sha256:{sha256_file(made)}") != expected[name]:
            bad.append(f"{name}: rebuilt as {digest}, the manifest says {expected[name]}")
        elif not image.has(name):
            good.append(f"{name}: {digest}, as the manifest says")
    if jcs.dumps({k: v for k, v in image.payload.items() if k != "expires"}) == jcs.dumps(rebuilt.payload):
        good.append("manifest: the same, predicted measurements included")
    else:
        bad += ["manifest: differs", *compare.compare(image, rebuilt).lines()]
    return Outcome(not bad, tuple(bad or good))


def verify(image: Described, say: Say, *, clean: bool = False) -> Outcome:
    """Build the image again in a cache of its own and compare. `clean` makes compilers' trees and Ollama anew too.

    Raises `ImageError` when this checkout does not define the image (nothing is said then), or on a failed build.
    """
    name = image.payload["flavour"]
    current, wanted = f"sha256:{build.definition_digest(name)}", image.payload["definition"]
    if current != wanted:
        raise ImageError(
            f"image {image.payload['id']} has definition {wanted}, this checkout has {current}",
            "check out the commit that built it",
        )
    locked = lock.load(name)
    if gone := debian.fetch(locked.packages(), locked.suite):
        # A build would lock anew; that is another image.
        raise ImageError(f"the locked package {gone[0].spec} is nowhere to be had", "name a snapshot archive")

    def line(text: str) -> None:
        try:
            progress = json.loads(text)
            say(build.Progress(**progress).line().replace("building", "rebuilding", 1))
        except (ValueError, TypeError):
            return

    with _cache(clean) as folder:
        command = [sys.executable, "-P", "-m", "cube_images.cli", "build", name, "--progress", "json"]
        run([*command, "--key", f"file:{_key(folder)}"], env={"XDG_CACHE_HOME": str(folder)}, on_line=line)
        digest = wanted.removeprefix("sha256:")
        return judge(image, described.load(folder / "cube-confidential" / "images" / digest))
