# SPDX-License-Identifier: Apache-2.0
"""An image as its manifest describes it, with its files where they are at hand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cube_attestation import dsse
from cube_attestation import manifest as format_
from cube_attestation.errors import AttestationError

from cube_images import manifest
from cube_images.errors import ImageError

PAYLOAD = "payload.json"
_TEXTS = ("uki_authenticode", "lock", "definition")
_FIRMWARE = ("code", "vars")
_PACKAGE = ("name", "version", "architecture", "sha256")
_BINARY = ("path", "sha256", "origin", "from")


@dataclass(frozen=True)
class Described:
    """A manifest's payload; `folder` is the built image that it belongs to, None when only the text was given."""

    payload: Mapping[str, Any]
    folder: Path | None

    @property
    def digest(self) -> str:
        """The identity of the image: digest of the payload without its expiry."""
        return format_.identity(self.payload)

    def file(self, name: str) -> Path:
        """A file of the built image; raises `ImageError` when there is none."""
        if self.folder is None or not (self.folder / name).is_file():
            raise ImageError(
                f"{name} of image {self.payload['id']} is not at hand", "name the folder of a built image"
            )
        return self.folder / name

    def has(self, *names: str) -> bool:
        """Whether these files of the built image are at hand."""
        return self.folder is not None and all((self.folder / name).is_file() for name in names)


def read(raw: Any, where: str) -> Mapping[str, Any]:
    """The payload of a manifest or of its envelope, from JSON. Raises `ImageError` that names `where`."""
    try:
        payload: Any = dsse.peek(raw, dsse.IMAGE_MANIFEST).payload if "payloadType" in raw else raw
        format_.parse(payload)
        if not (
            all(isinstance(payload[name], str) for name in _TEXTS)
            and all(isinstance(payload["firmware"][name], str) for name in _FIRMWARE)
            and all(isinstance(row[name], str) for row in payload["packages"] for name in _PACKAGE)
            and all(isinstance(row[name], str) for row in payload["binaries"] for name in _BINARY)
        ):
            raise TypeError("a member that should be text is something else")
    except (ValueError, KeyError, TypeError, AttestationError) as error:
        raise ImageError(
            f"{where} is not an image manifest: {error}", "name a manifest or a built image"
        ) from error
    found: Mapping[str, Any] = payload
    return found


def load(path: Path) -> Described:
    """The image that `path` names: the folder of a built one, its manifest.json, or a payload.json.

    Signatures are not checked: this is for reading. Raises `ImageError` for anything that is no manifest.
    """
    source = path
    if path.is_dir():
        found = [path / name for name in (PAYLOAD, manifest.NAME) if (path / name).is_file()]
        if not found:
            raise ImageError(f"{path} holds no built image", "name a folder that `measured-image build` made")
        source = found[0]
    try:
        raw = json.loads(source.read_text())
    except OSError as error:
        raise ImageError(f"{source} can't be read: {error.strerror}", "name a manifest or a built image") from error
    except ValueError as error:
        raise ImageError(
            f"{source} is not an image manifest: {error}", "name a manifest or a built image"
        ) from error
    beside = source.parent if (source.parent / "disk.img").is_file() else None
    return Described(read(raw, str(source)), beside)
