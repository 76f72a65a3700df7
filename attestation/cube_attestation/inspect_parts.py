# SPDX-License-Identifier: Apache-2.0
"""Every part that ``recognise`` finds, in words and units. Nothing here is checked for who made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from . import describe, times
from .errors import BadInput
from .recognise import Material, Quote
from .recognise.material import Device
from .x509 import certificate, crl

Lines = Iterator[str]


def describe_material(material: Material) -> Lines:
    """Lines about every part. A part that can't be read says why; raises BadInput when that is the only one."""
    parts: list[tuple[Callable[[], Lines], str]] = []
    for name, reader in _READERS.items():
        for part in getattr(material, name):
            parts.append((lambda reader=reader, part=part: reader(part), name))  # type: ignore[misc]
    for read, name in parts:
        try:
            yield from read()
        except BadInput as error:
            if len(parts) == 1:
                raise
            yield f"malformed ({name}): {error}"


def _tdx_quote(data: bytes) -> Lines:
    from .tdx import abi, appraise

    quote = abi.parse_quote(data)
    yield f"{'Intel TDX' if quote.tee == abi.TEE_TDX else 'Intel SGX'} quote, version {quote.version}"
    yield f"  quoting enclave: vendor {quote.qe_vendor.hex()}, ISV SVN {quote.qe_report.isv_svn}"
    yield f"  certification data: type {quote.cert_type}, {len(quote.cert_data)} bytes"
    yield f"  after the quote: {len(quote.trailing)} bytes that nothing signs"
    if isinstance(quote.body, abi.TdReport):
        yield from describe.facts(appraise.report_facts(quote.body))
    else:
        body = quote.body
        yield f"  MRENCLAVE {body.mr_enclave.hex()}, MRSIGNER {body.mr_signer.hex()}"
        yield f"  product {body.isv_prod_id}, SVN {body.isv_svn}, debug: {'yes' if body.debug else 'no'}"
        yield f"  report_data: {body.report_data.hex()}"
    if quote.cert_type == abi.CERT_PCK_CHAIN:
        yield from _indented(describe.certificates(quote.cert_data))


def _td_report(data: bytes) -> Lines:
    yield f"TDREPORT, {len(data)} bytes: counts only inside of its machine, no key signs it"
    yield f"  report_data: {data[128:192].hex()}"


def _collateral(data: bytes) -> Lines:
    from .tdx import collateral

    found = collateral.from_json(data)
    if found.tcb_info is not None:
        info = collateral.parse_tcb_info(found.tcb_info.content)
        yield f"Intel TCB info for {info.id}, FMSPC {info.fmspc.hex()}, TCB recovery {info.evaluation_number}"
        yield f"  good from {times.format_time(info.issued)} to {times.format_time(info.next_update)}"
        for level in info.levels:
            yield f"  level of {level.date:%Y-%m-%d}: {level.status}, PCE SVN {level.svn} {_open(level.advisories)}"
        for module in info.modules:
            yield f"  TDX module {module.id}: {', '.join(f'SVN {le.svn} {le.status}' for le in module.levels)}"
    if found.qe_identity is not None:
        identity = collateral.parse_qe_identity(found.qe_identity.content)
        yield f"Intel enclave identity {identity.id}, TCB recovery {identity.evaluation_number}"
        yield f"  good from {times.format_time(identity.issued)} to {times.format_time(identity.next_update)}"
        for level in identity.levels:
            yield f"  ISV SVN {level.svn}: {level.status} {_open(level.advisories)}"
    for words, der in (("root CA", found.root_crl), ("PCK", found.pck_crl)):
        if der:
            yield f"{words} revocation list:"
            yield from _indented(_crl(der))
    for words, chain in (("TCB info", found.tcb_info_chain), ("QE identity", found.qe_identity_chain)):
        if chain:
            yield f"issuer chain of the {words}:"
            yield from _indented(describe.certificates(chain))


def _open(advisories: tuple[str, ...]) -> str:
    return f"(open: {', '.join(advisories)})" if advisories else ""


def _crl(data: bytes) -> Lines:
    found = crl.load(data, where="revocation list")
    yield f"revocation list of {certificate.describe(found.issuer)}: {len(found.revoked)} certificates"
    yield f"  good from {times.format_time(found.this_update)} to {times.format_time(found.next_update)}"
    for serial in sorted(found.revoked)[:32]:
        yield f"  revoked: serial {serial:x}"


def _endorsement(data: bytes) -> Lines:
    from .tdx import endorsement

    found = endorsement.parse(data)
    yield f"Google launch endorsement of firmware {found.digest.hex()}, SVN {found.svn}"


def _quote(quote: Quote) -> Lines:
    yield "TPM quote with its signature"
    yield from _attest(quote.attest)
    yield from _pcrs(quote.pcrs)


def _attest(data: bytes) -> Lines:
    from .tpm import abi

    yield "TPMS_ATTEST of a quote"
    yield from describe.attest_lines(abi.parse_quote(data))


def _signature(data: bytes) -> Lines:
    from .azure.abi import parse_signature

    found = parse_signature(data)
    yield f"TPM signature: {found.scheme} with {found.hash}, {len(found.value)} bytes"


def _public(data: bytes) -> Lines:
    from .tpm import abi

    found = abi.parse_public(data)
    yield f"TPMT_PUBLIC: {found.curve or f'rsa{8 * len(found.modulus)}'}, attributes 0x{found.attributes:08x}"
    yield f"  name: {found.name().hex()}"


def _pcrs(pcrs: Mapping[str, Mapping[int, bytes]]) -> Lines:
    for bank, values in pcrs.items():
        for index, value in sorted(values.items()):
            yield f"  {bank} PCR {index:2}: {value.hex()}"


def _pcr_values(pcrs: Mapping[str, Mapping[int, bytes]]) -> Lines:
    yield f"PCR values of {', '.join(pcrs)}"
    yield from _pcrs(pcrs)


def _log(data: bytes) -> Lines:
    from .check.tdx import is_cc_log
    from .tdx import ccel

    if not is_cc_log(data):
        yield from describe.tcg_log(data)
        return
    log = ccel.parse(data)
    yield f"CC event log (CCEL): {len(log.events)} events"
    for event in log.events:
        where = f"RTMR{event.pcr - 1}" if event.extends else "(none)"
        yield f"  {where} {event.digests.get('sha384', b'').hex()[:16]:16} {event.type}: {event.words()}"
    for i, value in enumerate(ccel.replay(log)):
        yield f"  replayed RTMR{i}: {value.hex()}"


def _cc_events(data: bytes) -> Lines:
    from .check.tdx import dstack_log
    from .tdx import ccel

    log = dstack_log(data)
    yield f"dstack event log: {len(log.events)} events"
    for entry in json.loads(data):
        named = f"{entry.get('event', '')}: {entry.get('event_payload', '')}"
        yield f"  RTMR{entry['imr']} {entry['digest'][:16]} {named}"
    for i, value in enumerate(ccel.replay(log)):
        yield f"  replayed RTMR{i}: {value.hex()}"


def _device(device: Device) -> Lines:
    from .nvidia import abi

    report = abi.parse_report(device.report)
    yield f"NVIDIA {'NVSwitch' if report.is_switch else 'GPU'} measurement report (SPDM 1.1)"
    yield f"  nonce: {report.request_nonce.hex()}"
    if not report.is_switch:
        yield f"  driver {report.driver_version}, mode {report.mode}"
    yield f"  VBIOS {report.vbios_version}, board {report.board}"
    for number, value in sorted(report.opaque.items()):
        yield f"  field {number} ({abi.FIELD_NAMES.get(number, 'unknown')}): {value.hex()[:128]}"
    for index, value in enumerate(report.measurements):
        yield f"  measurement {index:2}: {value.hex()}"
    if device.chain:
        yield from _indented(describe.certificates(device.chain))


def _rim(data: bytes) -> Lines:
    from .nvidia import rim

    found = rim.parse(data)
    yield f"NVIDIA reference manifest ({found.kind}) for {found.product}, version {found.version}"
    yield f"  tag: {found.tag_id}, {len(found.values)} active measurements"
    for index, digests in sorted(found.values.items()):
        yield f"  measurement {index:2}: {' or '.join(digest.hex() for digest in digests)}"


def _ocsp(data: bytes) -> Lines:
    from .nvidia import ocsp

    found = ocsp.load(data)
    yield f"OCSP response about serial {found.serial:x}: {found.status.status}"
    until = times.format_time(found.status.next_update) if found.status.next_update else "no stated end"
    yield f"  good from {times.format_time(found.status.this_update)} to {until}"


def _token(data: bytes) -> Lines:
    from .tokens import abi

    found = abi.parse_set(data) if abi.is_set(data) else None
    named = [("overall", found.overall), *found.devices.items()] if found else [("", abi.parse(data))]
    for name, token in named:
        yield f"token {name}".strip()
        for part, values in (("header", token.header), ("claim", token.claims)):
            for member, value in values.items():
                text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                yield f"  {part} {member}: {text if len(text) <= 200 else text[:199] + '…'}"


def _keys(data: bytes) -> Lines:
    from .tokens import abi

    found = abi.load_keys(data)
    yield f"{len(found)} public keys"
    for key in found:
        until = f", certificate until {times.format_time(key.not_after)}" if key.not_after else ""
        yield f"  {key.kid or '(no id)'}: {key.spki}{until}"


def _blob(data: bytes) -> Lines:
    if len(data) in (256, 384, 512):
        yield f"{len(data)} bytes: the size of a bare RSA signature"
    elif len(data) == 64:
        yield f"64 bytes: the size of report data: {data.hex()}"
    else:
        raise BadInput("is nothing that this command knows", todo="see `attestation inspect --help`")


def _indented(lines: Lines) -> Lines:
    for line in lines:
        yield f"  {line}"


def _table(data: bytes) -> Lines:
    from .snp import abi

    yield "AMD certificate table (auxblob)"
    for kind, content in abi.parse_table(data):
        yield f"  {kind}: {len(content)} bytes"
        if kind in ("ark", "ask", "vcek", "vlek") and content:
            yield from _indented(_indented(describe.certificates(content)))


_READERS: dict[str, Callable[..., Lines]] = {
    "snp_reports": describe.snp_report,
    "snp_tables": _table,
    "tdx_quotes": _tdx_quote,
    "td_reports": _td_report,
    "hcl_reports": describe.hcl_report,
    "quotes": _quote,
    "attests": _attest,
    "signatures": _signature,
    "publics": _public,
    "pcrs": _pcr_values,
    "logs": _log,
    "systemd_logs": describe.systemd_log,
    "cc_events": _cc_events,
    "devices": _device,
    "rims": _rim,
    "ocsp": _ocsp,
    "tokens": _token,
    "keys": _keys,
    "endorsements": _endorsement,
    "collateral": _collateral,
    "crls": _crl,
    "certificates": describe.certificates,
    "notes": lambda note: iter((note,)),
    "blobs": _blob,
}
