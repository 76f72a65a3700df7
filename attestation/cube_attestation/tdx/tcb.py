# SPDX-License-Identifier: Apache-2.0
"""Which TCB level a platform, a TDX module and a quoting enclave have, and the status of all together.

Intel SGX/TDX PCS API v4, "Get TDX TCB Info" and "Get TD QE Identity": determining the TCB status.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from . import abi
from .collateral import STATUSES, ModuleIdentity, QeIdentity, TcbInfo, TcbLevel

NOT_SUPPORTED = "NotSupported"  # no published level is as low as this


class Tcb(NamedTuple):
    """TCB of the whole and of its parts; each is a status of Intel's, or NotSupported. ``module`` is None for SGX.

    ``date`` is the earliest tcbDate among the parts: what Intel fixed after it may be open here.
    """

    status: str
    platform: str
    module: str | None
    enclave: str
    advisories: tuple[str, ...]
    date: datetime | None


def worst(statuses: Iterable[str]) -> str:
    """The status of a whole: revoked over all else, then old, to be configured, to be hardened, taken together."""
    statuses = list(statuses)
    if NOT_SUPPORTED in statuses:
        return NOT_SUPPORTED
    wrong = frozenset[str]().union(*(STATUSES[status] for status in statuses))
    if "revoked" in wrong:
        return "Revoked"
    if "old" in wrong:  # what must be updated anyway needs no advice on software hardening
        wrong = wrong - {"hardening"}
    return next(status for status, parts in STATUSES.items() if parts == wrong)


def evaluate(info: TcbInfo, identity: QeIdentity, pck: abi.PckExtension, quote: abi.Quote) -> Tcb:
    """The TCB of ``quote``'s platform; the documents must be about it (kind, FMSPC), which the caller checked."""
    report = quote.body if isinstance(quote.body, abi.TdReport) else None
    platform = [platform_level(info, pck, svns) for svns in svn_vectors(report)]
    module = [module_level(info, svns) for svns in svn_vectors(report) if svns and svns[1]]
    enclave = [enclave_level(identity, quote.qe_report)]
    levels = [level for level in (*platform, *module, *enclave) if level]
    platform_status, module_status, enclave_status = map(_status, (platform, module or platform, enclave))
    return Tcb(
        status=worst([platform_status, module_status, enclave_status]),
        platform=platform_status,
        module=None if report is None else module_status,
        enclave=enclave_status,
        advisories=tuple(sorted({advisory for level in levels for advisory in level.advisories})),
        date=min((level.date for level in levels), default=None),
    )


def svn_vectors(report: abi.TdReport | None) -> tuple[bytes, ...]:
    """TEE_TCB_SVN as of the TD's launch and, in a 1.5 report, of the module that runs now: both count in full.

    A TD-preserving update may leave either one lower. For an SGX enclave there is one, empty.
    """
    if report is None:
        return (b"",)
    if report.tee_tcb_svn2 in (None, report.tee_tcb_svn):
        return (report.tee_tcb_svn,)
    return report.tee_tcb_svn, report.tee_tcb_svn2 or b""


def _status(levels: Iterable[TcbLevel | None]) -> str:
    return worst(level.status if level else NOT_SUPPORTED for level in levels)


def platform_level(info: TcbInfo, pck: abi.PckExtension, svns: bytes) -> TcbLevel | None:
    """The first level whose SVNs are all reached: 16 SGX components, PCESVN and, for TDX, the components ``svns``.

    From TDX 1.5 on the first two TDX components are the module's minor and major version, which have own levels.
    """
    start = 2 if svns and svns[1] else 0
    for level in info.levels:
        if (
            _reaches(pck.cpu_svn, level.sgx)
            and pck.pce_svn >= level.svn
            and _reaches(svns[start:], level.tdx[start:] if svns else b"")
        ):
            return level
    return None


def enclave_level(identity: QeIdentity, report: abi.SgxReport) -> TcbLevel | None:
    """The first level that the quoting enclave's ISVSVN reaches."""
    return _first(identity.levels, report.isv_svn)


def module_level(info: TcbInfo, svns: bytes) -> TcbLevel | None:
    """The first level that the module reaches; a 1.0 module (major version 0) has none, the platform's cover it."""
    found = module_identity(info, svns)
    return _first(found.levels, svns[0]) if found else None


def module_identity(info: TcbInfo, svns: bytes) -> ModuleIdentity | None:
    """The identity of a module: by its major version, or the 1.0 module's."""
    major = svns[1]
    if not major:
        return info.module
    return next((module for module in info.modules if module.id == f"TDX_{major:02X}"), None)


def module_mismatch(module: ModuleIdentity, report: abi.TdReport) -> str:
    """In words what of the module's identity does not match, or an empty string."""
    if report.mr_signer_seam != module.mr_signer:
        return f"the TDX module is signed by {report.mr_signer_seam.hex()[:16]}…, not by Intel"
    if report.seam_attributes & module.attributes_mask != module.attributes:
        return f"SEAM attributes 0x{report.seam_attributes:x} where 0x{module.attributes:x} belong"
    return ""


def enclave_mismatch(identity: QeIdentity, report: abi.SgxReport) -> str:
    """In words what of the quoting enclave's identity does not match, or an empty string."""
    if report.mr_signer != identity.mr_signer:
        return f"MRSIGNER {report.mr_signer.hex()[:16]}… is not {identity.mr_signer.hex()[:16]}…"
    if report.isv_prod_id != identity.isv_prod_id:
        return f"ISVPRODID {report.isv_prod_id} is not {identity.isv_prod_id}"
    if int.from_bytes(report.misc_select) & identity.misc_select_mask != identity.misc_select:
        return f"MISCSELECT {report.misc_select.hex()} does not match"
    if int.from_bytes(report.attributes) & identity.attributes_mask != identity.attributes:
        return f"attributes {report.attributes.hex()} do not match"
    return ""


def _reaches(found: bytes, lowest: bytes) -> bool:
    return all(have >= need for have, need in zip(found, lowest, strict=True))


def _first(levels: tuple[TcbLevel, ...], svn: int) -> TcbLevel | None:
    return next((level for level in levels if svn >= level.svn), None)
