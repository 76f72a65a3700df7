# SPDX-License-Identifier: Apache-2.0
"""Key references: which key signs in which role, never the key itself.

A reference is `file:<path>` (PEM, PKCS #8, ECDSA P-256). What a reference opens to satisfies
`cube_attestation.dsse.Signer`, and so will keys in an HSM or a cloud's key service.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation import dsse

from cube_stacks.state import state_folder, write_atomically

Role = Literal["control", "ca", "image"]
ROLES: tuple[Role, ...] = ("control", "ca", "image")


class KeyFailure(Exception):
    """A key reference that can't be used; the message says which, why and what to do."""


class SigningKey(dsse.Signer, Protocol):
    """A P-256 key that signs; the private half may live elsewhere."""

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey: ...
    @property
    def keyid(self) -> str:
        """Digest of `spki`: the key's identity everywhere (formats §0)."""
        ...


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """PEM SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass(frozen=True)
class FileKey:
    """A key that this process holds in memory."""

    _private: ec.EllipticCurvePrivateKey

    @property
    def spki(self) -> bytes:
        return dsse.spki(self.public_key)

    @property
    def keyid(self) -> str:
        return dsse.spki_digest(self.spki)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._private.public_key()

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data, ec.ECDSA(hashes.SHA256()))

    def __repr__(self) -> str:
        return f"FileKey({self.keyid})"


def open_key(reference: str) -> SigningKey:
    """Open the key behind `reference`.

    Raises KeyFailure: unknown scheme, no such file, readable by others, not a P-256 private key.
    """
    scheme, separator, location = reference.partition(":")
    if not separator or scheme != "file":
        raise KeyFailure(
            f"key reference {reference!r}: only file:<path> can be opened; write e.g. file:/path/to/key.pem"
        )
    path = Path(location).expanduser()
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as error:
        raise KeyFailure(f"key {path}: {error.strerror}; check the reference, or restore the file") from error
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFailure(f"key {path}: others can read it; run: chmod 600 {path}")
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFailure(f"key {path}: not an unencrypted PEM private key ({error}); restore the file") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise KeyFailure(f"key {path}: not an ECDSA P-256 key; make one with: openssl ecparam -name prime256v1")
    return FileKey(private)


def environment_key(environment: str, role: Role) -> str:
    """The reference of the local environment's key in `role`; the key is made when there is none."""
    return environment_file_key(state_folder(environment) / "keys" / f"{role}.pem")


def domain_key(environment: str, domain: str) -> str:
    """The reference of the key that signs the tokens of the domain named `domain`; made when there is none."""
    if not domain or not all(c.isascii() and (c.isalnum() or c in "-_") for c in domain):
        raise KeyFailure(f"domain {domain!r}: use letters, digits, '-' and '_' in a domain's name")
    return environment_file_key(state_folder(environment) / "keys" / "tokens" / f"{domain}.pem")


def environment_file_key(path: Path) -> str:
    """The reference of the key in `path`; a new P-256 key, 0600, when there is none."""
    if not path.exists():
        private = ec.generate_private_key(ec.SECP256R1())
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        write_atomically(draft, pem, 0o600)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # of two commands that start at once, one key wins
        draft.unlink()
    return f"file:{path}"
