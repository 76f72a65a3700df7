# SPDX-License-Identifier: Apache-2.0
"""Evidence: claims of this moment, a TPM quote over them, and the logs that explain the PCRs (formats §3)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cube_attestation import claims as claims_format
from cube_attestation import cmw, jcs, launch
from cube_attestation.claims import Claims
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields

from .http import HttpError
from .tpm import Tpm

FIRMWARE_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
SYSTEMD_LOG = Path("/run/log/systemd/tpm2-measure.log")
MAX_WAITING = 4
_MAX_LOG = 4 << 20


class TpmQueue:
    """One TPM command at a time; a bounded number may wait, the next is told to come back."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self._limit = limit
        self._waiting = 0
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the TPM. Raises HttpError 429 when too many wait already."""
        if self._waiting > self._limit:
            raise HttpError(429, "busy", f"{self._limit} requests are waiting already.", {"retry-after": "1"})
        self._waiting += 1
        try:
            async with self._lock:
                yield
        finally:
            self._waiting -= 1


def parse_request(body: bytes) -> bytes:
    """The nonce of ``POST /attestation``. Raises HttpError 400."""
    try:
        fields = Fields(jcs.loads(body, where="request"), "request")
        if fields.has("report_data"):
            raise HttpError(
                400,
                "report_data.refused",
                "No byte of a caller's choice reaches the report: it carries the digest of claims that the machine "
                "makes. Send 16 to 64 random bytes as nonce and find them in the claims.",
            )
        low, high = claims_format.NONCE_BYTES
        nonce = fields.base64("nonce", high)
        fields.done()
    except BadInput as error:
        raise HttpError(400, "request.invalid", f"{error}.") from error
    if not low <= len(nonce) <= high:
        raise HttpError(400, "request.invalid", f"request.nonce: must have {low} to {high} bytes.")
    return nonce


def parse_activation(body: bytes) -> tuple[bytes, bytes]:
    """``(credential_blob, secret)`` of ``POST /attestation/activate``. Raises HttpError 400."""
    try:
        fields = Fields(jcs.loads(body, where="request"), "request")
        found = fields.base64("credential_blob", 1024), fields.base64("secret", 1024)
        fields.done()
    except BadInput as error:
        raise HttpError(400, "request.invalid", f"{error}.") from error
    return found


class Collector:
    """Makes evidence for claims. Blocking calls; the launch envelope and the EK certificate don't change."""

    def __init__(self, tpm: Tpm, envelope: jcs.Json, *, firmware_log: Path, systemd_log: Path) -> None:
        self._tpm = tpm
        self._envelope = jcs.dumps(envelope)
        self._ek_certificate = tpm.ek_certificate()
        self._logs = {
            "tcg-eventlog": ("application/vnd.cube.tcg-eventlog", firmware_log),
            "systemd-eventlog": ("application/vnd.cube.systemd-eventlog", systemd_log),
        }

    def collect(self, make_claims: Callable[[], Claims]) -> bytes:
        """JSON of the CMW collection for claims made now."""
        claims = make_claims()
        encoded = claims.encode()
        quote = self._tpm.quote(claims.extra_data())
        found = cmw.Collection().with_item("claims", claims_format.MEDIA_TYPE, encoded)
        document = {
            "attest": b64(quote.attest),
            "signature": b64(quote.signature),
            "ak_public": b64(self._tpm.ak_public),
            "pcrs": {"sha256": {str(pcr): value.hex() for pcr, value in quote.pcrs.items()}},
        }
        found = found.with_item("tpm-quote", "application/vnd.cube.tpm-quote+json", jcs.dumps(document))
        for label, (media, path) in self._logs.items():
            if (data := _read_log(path)) is not None:
                found = found.with_item(label, media, data)
        found = found.with_item("launch", launch.MEDIA_TYPE, self._envelope)
        if self._ek_certificate:
            found = found.with_item("ek-certificate", "application/pkix-cert", self._ek_certificate)
        return jcs.dumps(found.to_json())


def _read_log(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_LOG)
    except FileNotFoundError:
        return None  # the verifier decides what a missing log means


def b64(data: bytes) -> str:
    """Standard base64."""
    return base64.b64encode(data).decode()
