# SPDX-License-Identifier: Apache-2.0
"""Check a manifest: who signed it, and that the files beside it are those it speaks of and predict what it says."""

import json
from datetime import UTC, datetime
from pathlib import Path

from cube_attestation import dsse, times
from cube_attestation import manifest as format_
from cube_attestation.errors import BadInput, NotAuthentic

from cube_images import manifest, predict
from cube_images.errors import ImageError
from cube_images.provenance import described, statement
from cube_images.wheels import sha256_file


def _key(text: str) -> bytes | str:
    if text.startswith("sha256:"):
        return text
    try:
        return dsse.spki_from_pem(Path(text).read_text(), where=text)
    except OSError as error:
        raise ImageError(
            f"the key {text} can't be read: {error.strerror}", "name a PEM file or sha256:…"
        ) from error


def verify(path: Path, key: str, now: datetime | None = None) -> list[str]:
    """What was found good, one line each. `key` is the allowed signer: `sha256:…` or a PEM file of the public key.

    `now` is the clock for the expiry (default: this machine's). Raises `NotAuthentic` for a signature, file or
    prediction that does not fit, `ImageError` for a manifest that has expired, `BadInput` for malformed input.
    """
    if path.is_dir():
        path = path / manifest.NAME
    try:
        envelope = json.loads(path.read_text())
    except OSError as error:
        raise ImageError(f"{path} can't be read: {error.strerror}", "name a manifest") from error
    except ValueError as error:
        raise BadInput(f"not JSON: {error}", where=str(path)) from error
    found = dsse.verify(envelope, dsse.IMAGE_MANIFEST, [_key(key)], where=str(path))
    content = format_.parse(found.payload, where=str(path))
    if content.expires is not None and content.expires <= (now or datetime.now(UTC)):
        raise ImageError(
            f"{path}: the manifest was good until {times.format_time(content.expires)}",
            "take the one that was signed anew, or sign it anew with `measured-image sign`",
        )
    until = times.format_time(content.expires) if content.expires else "no expiry"
    lines = [f"signature of {found.keyid}", f"good until {until}", f"image {content.identity}"]
    if (provenance := path.parent / statement.NAME).is_file():
        lines.append(statement.check(provenance, [_key(key)], described.read(found.payload, str(path))))
    for name, digest in (("disk.img", content.image), ("uki.efi", content.uki)):
        file = path.parent / name
        if file.is_file():
            if (actual := f"sha256:{sha256_file(file)}") != digest:
                raise NotAuthentic(
                    f"{name} is {actual}, the manifest says {digest}", why="invalid", where=str(file)
                )
            lines.append(f"{name} {digest}")
    if (path.parent / "disk.img").is_file() and (path.parent / "uki.efi").is_file():
        predicted = predict.pcrs(predict.predict(path.parent))
        wrong = [pcr for pcr, value in content.reference.pcrs.items() if predicted.get(pcr) != value]
        if wrong or predicted.keys() != content.reference.pcrs.keys():
            raise NotAuthentic(f"the image predicts other values for PCR {wrong}", why="invalid", where=str(path))
        lines.append(f"PCRs {', '.join(str(pcr) for pcr in sorted(predicted))} as the image predicts them")
    return lines
