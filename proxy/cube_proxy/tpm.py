# SPDX-License-Identifier: Apache-2.0
"""The TPM's edge: the five commands that the agent needs, over tpm2-pytss. Blocking; one caller at a time.

Marshalled structures in and out (TPM 2.0 library specification, part 2), so that nobody else needs tpm2-pytss. It
is imported when a TPM is opened: the guest has Debian's package, elsewhere this room works without its C libraries.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass

EK_HANDLE = 0x81010001
EK_CERTIFICATE = 0x01C00002
LAUNCH_PCR = 8
PCRS = tuple(range(16))
_BANK = "sha256:" + ",".join(map(str, PCRS))
_QUOTE_ATTEMPTS = 5


class TpmError(Exception):
    """The TPM refused a command or gave an inconsistent answer."""


@dataclass(frozen=True)
class Quote:
    """``attest``: TPMS_ATTEST, ``signature``: TPMT_SIGNATURE, ``pcrs``: the SHA-256 bank that the quote covers."""

    attest: bytes
    signature: bytes
    pcrs: dict[int, bytes]


class Tpm:
    """A TPM with a fresh attestation key of this boot."""

    def __init__(self, tcti: str) -> None:
        import tpm2_pytss

        self._tss = tpm2_pytss
        self._lock = threading.Lock()
        try:
            self._esys = tpm2_pytss.ESAPI(tcti)
        except tpm2_pytss.TSS2_Exception as error:
            raise TpmError(f"{tcti}: the TPM does not answer: {error}") from error
        self._ak = tpm2_pytss.ESYS_TR.NONE
        self.ak_public = b""

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend ``pcr`` of the SHA-256 bank with 32 bytes."""
        tss = self._tss
        value = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest))
        with self._lock:
            self._esys.pcr_extend(tss.ESYS_TR(pcr), tss.TPML_DIGEST_VALUES([value]))

    def create_ak(self) -> None:
        """Make the attestation key: ECC P-256, restricted, a primary of the endorsement hierarchy.

        Sets ``ak_public`` to its TPMT_PUBLIC.
        """
        tss, bits = self._tss, self._tss.TPMA_OBJECT
        attributes = (
            bits.FIXEDTPM
            | bits.FIXEDPARENT
            | bits.SENSITIVEDATAORIGIN
            | bits.USERWITHAUTH
            | bits.RESTRICTED
            | bits.SIGN_ENCRYPT
        )
        area = tss.TPMT_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=attributes, nameAlg="sha256")
        with self._lock:
            self._ak, public, *_ = self._esys.create_primary(
                tss.TPM2B_SENSITIVE_CREATE(), tss.TPM2B_PUBLIC(publicArea=area), tss.ESYS_TR.ENDORSEMENT
            )
        self.ak_public = public.publicArea.marshal()

    def quote(self, extra_data: bytes) -> Quote:
        """TPM2_Quote over PCR 0 to 15 with the values it covers. Raises TpmError if they never hold still."""
        scheme = self._tss.TPMT_SIG_SCHEME(scheme=self._tss.TPM2_ALG.NULL)
        for _ in range(_QUOTE_ATTEMPTS):
            with self._lock:
                attest, signature = self._esys.quote(self._ak, _BANK, extra_data, scheme)
                pcrs = self._read_pcrs()
            parsed, _ = self._tss.TPMS_ATTEST.unmarshal(bytes(attest))
            said = bytes(parsed.attested.quote.pcrDigest)
            if said == hashlib.sha256(b"".join(pcrs[pcr] for pcr in PCRS)).digest():
                return Quote(bytes(attest), signature.marshal(), pcrs)
        raise TpmError("the PCRs changed under every quote")

    def _read_pcrs(self) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for half in (PCRS[:8], PCRS[8:]):  # a TPM hands out eight values at a time
            _, _, values = self._esys.pcr_read("sha256:" + ",".join(map(str, half)))
            found.update(zip(half, map(bytes, values), strict=True))
        return found

    def ek_certificate(self) -> bytes:
        """DER from NV 0x01c00002; empty when the TPM has none."""
        tss = self._tss
        with self._lock:
            try:
                index = self._esys.tr_from_tpmpublic(tss.TPM2_HANDLE(EK_CERTIFICATE))
                public, _ = self._esys.nv_read_public(index)
                size = public.nvPublic.dataSize
                parts = [
                    bytes(self._esys.nv_read(index, min(1024, size - at), at, auth_handle=tss.ESYS_TR.OWNER))
                    for at in range(0, size, 1024)
                ]
            except tss.TSS2_Exception:
                return b""
        return b"".join(parts)

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        """TPM2_ActivateCredential with the AK and the EK (RSA, PolicySecret of the endorsement hierarchy).

        Raises TpmError if the credential was made for another AK or EK.
        """
        tss = self._tss
        with self._lock:
            try:
                ek = self._esys.tr_from_tpmpublic(tss.TPM2_HANDLE(EK_HANDLE))
                session = self._esys.start_auth_session(
                    tss.ESYS_TR.NONE,
                    tss.ESYS_TR.NONE,
                    tss.TPM2_SE.POLICY,
                    tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL),
                    tss.TPM2_ALG.SHA256,
                )
                try:
                    self._esys.policy_secret(tss.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
                    found = self._esys.activate_credential(
                        self._ak,
                        ek,
                        credential_blob,
                        secret,
                        session1=tss.ESYS_TR.PASSWORD,
                        session2=session,
                    )
                finally:
                    self._esys.flush_context(session)
            except tss.TSS2_Exception as error:
                raise TpmError(f"the credential can't be activated: {error}") from error
        return bytes(found)
