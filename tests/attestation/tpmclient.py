# SPDX-License-Identifier: Apache-2.0
"""A software TPM (swtpm) and the few commands that the tests need, on the standard library."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cube_attestation.tpm.abi import Reader, sized

NULL, ENDORSEMENT, PASSWORD = 0x40000007, 0x4000000B, 0x40000009
_RETRY = 0x922  # TPM_RC_RETRY: not now, ask again
_PASSWORD_AUTH = struct.pack(">IHBH", PASSWORD, 0, 0, 0)
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B_384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bdd419cacb47ba09699646150f9fc000f3f80e12"
)

# Templates of the TCG EK Credential Profile: L-1, L-2 and H-3
EK_RSA = (
    struct.pack(">HHI", 1, 0x0B, 0x000300B2)
    + sized(_POLICY_A)
    + struct.pack(">HHHHHI", 6, 128, 0x43, 0x10, 2048, 0)
    + sized(bytes(256))
)
EK_P256 = (
    struct.pack(">HHI", 0x23, 0x0B, 0x000300B2)
    + sized(_POLICY_A)
    + struct.pack(">HHHHHH", 6, 128, 0x43, 0x10, 3, 0x10)
    + sized(bytes(32)) * 2
)
EK_P384 = (
    struct.pack(">HHI", 0x23, 0x0C, 0x000300F2)
    + sized(_POLICY_B_384)
    + struct.pack(">HHHHHH", 6, 256, 0x43, 0x10, 4, 0x10)
    + sized(b"") * 2
)
AK_P256 = (
    struct.pack(">HHI", 0x23, 0x0B, 0x00050072)
    + sized(b"")
    + struct.pack(">HHHHH", 0x10, 0x18, 0x0B, 3, 0x10)
    + sized(b"") * 2
)
AK_RSA = (
    struct.pack(">HHI", 1, 0x0B, 0x00050072)
    + sized(b"")
    + struct.pack(">HHHHI", 0x10, 0x14, 0x0B, 2048, 0)
    + sized(b"")
)


class TpmRefused(Exception):
    """A response code other than success."""


@dataclass(frozen=True)
class Key:
    handle: int
    public: bytes
    name: bytes


class Tpm:
    """Commands over one socket to swtpm."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def run(self, code: int, body: bytes, *, sessions: bool) -> bytes:
        """Send one command; the response after its header. Raises TpmRefused."""
        header = struct.pack(">HII", 0x8002 if sessions else 0x8001, 10 + len(body), code)
        for _ in range(50):
            self._connection.sendall(header + body)
            _, size, result = struct.unpack(">HII", self._receive(10))
            rest = self._receive(size - 10)
            if result != _RETRY:
                break
            time.sleep(0.02)
        if result:
            raise TpmRefused(f"command 0x{code:x}: response code 0x{result:x}")
        return rest

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._connection.recv(size - len(data))
            if not part:
                raise TpmRefused("swtpm closed the connection")
            data += part
        return data

    def create_primary(self, template: bytes) -> Key:
        """TPM2_CreatePrimary in the endorsement hierarchy with empty authorisations."""
        auth = struct.pack(">I", len(_PASSWORD_AUTH)) + _PASSWORD_AUTH
        sensitive = sized(sized(b"") + sized(b""))
        body = (
            struct.pack(">I", ENDORSEMENT) + auth + sensitive + sized(template) + sized(b"") + struct.pack(">I", 0)
        )
        reader = Reader(self.run(0x131, body, sessions=True), "CreatePrimary")
        handle = reader.integer(4)
        reader.integer(4)
        public = reader.sized(1024)
        reader.sized(1024)
        reader.sized(64)
        reader.take(6)
        reader.sized(64)
        return Key(handle, public, reader.sized(66))

    def activate(self, ak: Key, ek: Key, blob: bytes, secret: bytes, *, policy: bool) -> bytes:
        """TPM2_ActivateCredential, the EK used by PolicySecret(endorsement) or by its empty password."""
        session = self._policy_session() if policy else PASSWORD
        ek_auth = struct.pack(">IHBH", session, 0, 0, 0)
        auths = _PASSWORD_AUTH + ek_auth
        body = struct.pack(">III", ak.handle, ek.handle, len(auths)) + auths + sized(blob) + sized(secret)
        reader = Reader(self.run(0x147, body, sessions=True), "ActivateCredential")
        reader.integer(4)
        return reader.sized(64)

    def _policy_session(self) -> int:
        body = struct.pack(">II", NULL, NULL) + sized(bytes(16)) + sized(b"") + struct.pack(">BHH", 1, 0x10, 0x0B)
        session = Reader(self.run(0x176, body, sessions=False), "StartAuthSession").integer(4)
        auth = struct.pack(">I", len(_PASSWORD_AUTH)) + _PASSWORD_AUTH
        body = struct.pack(">II", ENDORSEMENT, session) + auth + sized(b"") * 3 + struct.pack(">i", 0)
        self.run(0x151, body, sessions=True)
        return session

    def quote(self, ak: Key, extra: bytes, pcrs: tuple[int, ...]) -> tuple[bytes, bytes]:
        """TPM2_Quote over the SHA-256 bank: TPMS_ATTEST and TPMT_SIGNATURE."""
        auth = struct.pack(">I", len(_PASSWORD_AUTH)) + _PASSWORD_AUTH
        bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
        selection = struct.pack(">IHB", 1, 0x0B, 3) + bits
        body = struct.pack(">I", ak.handle) + auth + sized(extra) + struct.pack(">H", 0x10) + selection
        data = self.run(0x158, body, sessions=True)
        reader = Reader(data, "Quote")
        size = reader.integer(4)
        attest = reader.sized(2048)
        return attest, reader.take(size - 2 - len(attest))

    def extend(self, pcr: int, digest: bytes) -> None:
        """TPM2_PCR_Extend of the SHA-256 bank."""
        auth = struct.pack(">I", len(_PASSWORD_AUTH)) + _PASSWORD_AUTH
        self.run(0x182, struct.pack(">I", pcr) + auth + struct.pack(">IH", 1, 0x0B) + digest, sessions=True)

    def flush(self, handle: int) -> None:
        self.run(0x165, struct.pack(">I", handle), sessions=False)


@contextlib.contextmanager
def software_tpm(folder: Path) -> Iterator[Tpm]:
    """A fresh swtpm with its state in ``folder``."""
    program = shutil.which("swtpm")
    assert program is not None
    path = folder / "tpm.sock"
    arguments = [
        program,
        "socket",
        "--tpm2",
        "--tpmstate",
        f"dir={folder}",
        "--server",
        f"type=unixio,path={path}",
        "--ctrl",
        f"type=unixio,path={folder / 'control.sock'}",
        "--flags",
        "not-need-init,startup-clear",
    ]
    with (folder / "swtpm.log").open("wb") as log:
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            for _ in range(200):
                if process.poll() is not None:
                    break
                with contextlib.suppress(OSError):
                    connection.connect(str(path))
                    break
                time.sleep(0.02)
            yield Tpm(connection)
    finally:
        process.terminate()
        process.wait(10)
