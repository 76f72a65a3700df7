# SPDX-License-Identifier: Apache-2.0
"""Images in a folder by content: published file by file under their digests, an index last; fetched and checked.

    blobs/sha256/<digest>      every file once, whatever images have it
    images/<digest>.json       one image: which files it has. It appears when all of them are there, whole

Interrupted, the next run goes on where this one stopped. Anything served over HTTP or mounted can be such a folder.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cube_attestation import jcs
from cube_attestation.errors import NotAuthentic
from cube_attestation.fields import DIGEST

from cube_images import manifest
from cube_images.errors import ImageError
from cube_images.paths import locked, require_space
from cube_images.provenance import statement
from cube_images.provenance.described import PAYLOAD, Described, load
from cube_images.release.source import CHUNK, Pace, Progress
from cube_images.release.source import digest as file_digest

_REQUIRED = (PAYLOAD, manifest.NAME, "disk.img", "uki.efi", "OVMF_CODE.fd", "OVMF_VARS.fd")
_OPTIONAL = (statement.NAME,)


def _blob(store: Path, digest: str) -> Path:
    return store / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _index(store: Path, digest: str) -> Path:
    if not DIGEST.fullmatch(digest):
        raise ImageError(f"{digest[:80]!r} is no image digest", "write it as sha256:… with 64 hex digits")
    return store / "images" / f"{digest.removeprefix('sha256:')}.json"


def _copy(source: Path, target: Path, digest: str, say: Progress) -> None:
    """Copy a file to `target` by way of `.<name>.part`, from where an earlier copy stopped; checks its hash."""
    part = target.with_name(f".{target.name}.part")
    size, total = source.stat().st_size, hashlib.sha256()
    pace = Pace(source.name, size, say)
    with source.open("rb") as data, part.open("ab+") as out:
        done = min(out.tell(), size)
        out.seek(0)
        while out.tell() < done:
            # What is there is kept only as far as it is what it should be.
            have = out.read(min(CHUNK, done - out.tell()))
            if have != data.read(len(have)):
                raise _Restart(part)
            total.update(have)
        out.truncate(done)
        while chunk := data.read(CHUNK):
            out.write(chunk)
            total.update(chunk)
            pace.at(out.tell())
        out.flush()
        os.fsync(out.fileno())
    if (found := f"sha256:{total.hexdigest()}") != digest:
        part.unlink()
        raise NotAuthentic(f"{source.name} is {found}, expected {digest}", why="invalid", where=str(source))
    part.replace(target)


class _Restart(Exception):
    """What an earlier copy left is not the beginning of this file."""


def _transfer(source: Path, target: Path, digest: str, say: Progress) -> bool:
    """Bring a file to `target` unless it is there whole; whether anything had to be copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and file_digest(target, say) == digest:
        return False
    target.unlink(missing_ok=True)
    require_space(target.parent, source.stat().st_size, source.name)
    try:
        _copy(source, target, digest, say)
    except _Restart as stale:
        Path(stale.args[0]).unlink()
        _copy(source, target, digest, say)
    return True


def _named(payload: Mapping[str, Any]) -> dict[str, str]:
    """The files whose digests an image's payload gives."""
    firmware = payload["firmware"]
    return {
        "disk.img": payload["image"],
        "uki.efi": payload["uki"],
        "OVMF_CODE.fd": firmware["code"],
        "OVMF_VARS.fd": firmware["vars"],
    }


def publish(image: Described, store: Path, say: Progress) -> Path:
    """Publish a built, signed image into `store`; returns its index file. What is there is not copied again.

    Raises `ImageError` when a file is missing, `NotAuthentic` when one is not what the manifest says.
    """
    files: dict[str, dict[str, Any]] = {}
    expected = _named(image.payload)
    envelope = json.loads(image.file(manifest.NAME).read_text())
    signed = load(image.file(manifest.NAME))
    if signed.digest != image.digest:
        raise NotAuthentic("the manifest is that of another image", why="invalid", where=str(image.folder))
    names = [*_REQUIRED, *(name for name in _OPTIONAL if image.has(name))]
    for name in names:
        path = image.file(name)
        digest = file_digest(path, say)
        if expected.get(name, digest) != digest:
            raise NotAuthentic(
                f"{name} is {digest}, the manifest says {expected[name]}", why="invalid", where=str(path)
            )
        files[name] = {"digest": digest, "size": path.stat().st_size}
    with locked(store / "publish"):
        for name in names:
            copied = _transfer(image.file(name), _blob(store, files[name]["digest"]), files[name]["digest"], say)
            say(f"{name}: {'published' if copied else 'already there'}")
    index = _index(store, image.digest)
    index.parent.mkdir(parents=True, exist_ok=True)
    temporary = index.with_name(f".{index.name}.tmp")
    temporary.write_bytes(
        jcs.dumps(
            {
                "version": 1,
                "image": image.digest,
                "id": image.payload["id"],
                "signers": sorted(row["keyid"] for row in envelope["signatures"]),
                "files": files,
            }
        )
        + b"\n"
    )
    temporary.replace(index)
    return index


def read_index(store: Path, digest: str) -> dict[str, dict[str, Any]]:
    """The files of a published image by name. Raises `ImageError` when the store has no such image."""
    path = _index(store, digest)
    try:
        raw = json.loads(path.read_text())
        files: dict[str, dict[str, Any]] = raw["files"]
        good = raw["version"] == 1 and raw["image"] == digest and set(_REQUIRED) <= files.keys()
        good = good and files.keys() <= {*_REQUIRED, *_OPTIONAL}
        good = good and all(DIGEST.fullmatch(row["digest"]) and row["size"] >= 0 for row in files.values())
    except OSError as error:
        raise ImageError(f"{store} has no image {digest}", "publish it there first") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"{path} is not an index: {error}", "publish the image again") from error
    if not good:
        raise ImageError(f"{path} is not the index of {digest}", "publish the image again")
    return files


def fetch(store: Path, digest: str, target: Path, say: Progress) -> Described:
    """Fetch the image `digest` from `store` into the folder `target`; goes on where an earlier fetch stopped.

    Every file is checked, and the digest decides: whoever runs the store can keep an image back, not change it. Who
    signed it is for `verify-manifest` to say. Raises `ImageError` or `NotAuthentic`.
    """
    files = read_index(store, digest)
    blobs = {name: _blob(store, row["digest"]) for name, row in files.items()}
    if missing := sorted(name for name, blob in blobs.items() if not blob.is_file()):
        raise ImageError(f"{store} lacks {missing[0]} of image {digest}", "publish the image again")
    found = load(blobs[PAYLOAD])
    if found.digest != digest:
        raise NotAuthentic(f"the payload is {found.digest}, expected {digest}", why="invalid", where=str(store))
    for name, expected in _named(found.payload).items():
        if files[name]["digest"] != expected:
            raise NotAuthentic(
                f"another {name} than the image has", why="invalid", where=str(_index(store, digest))
            )
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        if not (target / PAYLOAD).is_file() or file_digest(target / PAYLOAD, say) != files[PAYLOAD]["digest"]:
            # Another image's, or what is left of one: nothing of it may pass for a part of this.
            for name in (PAYLOAD, manifest.NAME, *_OPTIONAL):
                (target / name).unlink(missing_ok=True)
        # The payload last: a folder that has it is whole.
        for name in sorted(files, key=lambda name: name == PAYLOAD):
            _transfer(blobs[name], target / name, files[name]["digest"], say)
            say(f"{name}: fetched")
    return load(target)
