# SPDX-License-Identifier: Apache-2.0
"""The image key by its reference. Only file keys are opened here; whoever has others passes a signer."""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation.dsse import LocalSigner

from cube_images.errors import ImageError
from cube_images.paths import state_dir

_SCHEME = "file:"


def default_reference() -> str:
    """The key that signs when none is named: this user's own."""
    return f"{_SCHEME}{state_dir() / 'image-key.pem'}"


def open_key(reference: str) -> LocalSigner:
    """The P-256 private key at `file:PATH` (PEM, PKCS #8). Raises `ImageError` for anything else."""
    if not reference.startswith(_SCHEME):
        raise ImageError(f"{reference.partition(':')[0]!r} keys can't be used here", "name a key as file:PATH")
    path = Path(reference.removeprefix(_SCHEME))
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ImageError(f"the image key {path} can't be read: {error.strerror}", "name an existing key") from error
    except (ValueError, TypeError) as error:
        raise ImageError(f"{path} is not a private key in PEM", "name an EC P-256 key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ImageError(f"{path} is not an EC P-256 key", "name one that is")
    return LocalSigner(key)


def make_default() -> str:
    """Make this user's own key if it isn't there; its reference."""
    reference = default_reference()
    path = Path(reference.removeprefix(_SCHEME))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        temporary = path.with_name(f".{path.name}.tmp")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(pem)
        temporary.replace(path)
    return reference
