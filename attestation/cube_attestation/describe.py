# SPDX-License-Identifier: Apache-2.0
"""Say what a file is and what it holds, recognised by content. Nothing here is checked for who made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import bundle as bundles
from . import claims, dsse, jcs, launch, policy, times
from .cmw import Collection
from .collateral import sources
from .errors import BadInput
from .fields import kind
from .tpm import abi, eventlog
from .tpm.verify import QuoteEvidence
from .x509 import certificate
from .x509.der import dotted

_INDICATORS = {1: "reference value", 2: "endorsement", 4: "evidence"}
Lines = Iterator[str]


def describe(data: bytes) -> list[str]:
    """Lines of text about ``data``. Raises BadInput when it is nothing known, or known and malformed."""
    if not data:
        raise BadInput("is empty")
    for recognised, reader in _READERS:
        if recognised(data):
            return [_safe(line) for line in reader(data)]
    from .inspect_parts import describe_material
    from .recognise import recognise

    return [_safe(line) for line in describe_material(recognise(data, where=""))]


def _safe(line: str) -> str:
    """What a file says can't steer the terminal that shows it."""
    return "".join(c if c.isprintable() else "?" for c in line)


def _json(data: bytes) -> object:
    try:
        return jcs.loads(data)
    except BadInput:
        return None


def _is_json_with(*names: str) -> Callable[[bytes], bool]:
    def recognised(data: bytes) -> bool:
        if data.lstrip()[:1] != b"{":
            return False
        value = _json(data)
        return isinstance(value, dict) and all(name in value for name in names)

    return recognised


def _is_policy(data: bytes) -> bool:
    return b"lowest_tier" in data and data.lstrip()[:1] != b"{"


def _bundle(data: bytes) -> Lines:
    bundle = bundles.load(data)
    yield f"bundle {bundle.digest()}"
    yield from _collection(bundle.evidence)
    if bundle.receipt is None:
        yield "no receipt"
        return
    yield "receipt"
    for line in _envelope_lines(bundle.receipt):
        yield f"  {line}"


def _evidence(data: bytes) -> Lines:
    collection = Collection.from_json(jcs.loads(data))
    yield "evidence collection"
    yield from _collection(collection)


def _collection(collection: Collection) -> Lines:
    for label, item in sorted(collection.items.items()):
        yield f"{label}: {item.media_type}, {len(item.value)} bytes, {_INDICATORS[item.indicator]}"
        reader = _BY_LABEL.get(label)
        lines = reader(item.value) if reader else iter(describe(item.value))
        try:
            for line in lines:
                yield f"  {line}"
        except BadInput as error:
            yield f"  malformed: {error}"


def _collateral_sources(data: bytes) -> Lines:
    found = sources.read(Collection().with_item(sources.LABEL, sources.MEDIA_TYPE, data))
    yield "collateral that was added after the bundle was made"
    for one in found.sources:
        yield f"  {times.format_time(one.time)} {one.item}: {one.what}, {one.digest}"
        yield f"    from {one.source}"
    yield f"  items that were not there: {', '.join(sorted(found.added)) or 'none'}"
    yield f"  items kept as they were: {', '.join(sorted(found.replaced)) or 'none'}"


def _claims(data: bytes) -> Lines:
    found = claims.Claims.decode(data)
    yield "claims"
    for name, value in found.to_json().items():
        if isinstance(value, dict):
            yield f"  {name}:"
            for key, inner in value.items():
                yield f"    {key}: {jcs.dumps(inner).decode()}"
        else:
            yield f"  {name}: {value}"
    yield f"  extraData that binds them: {found.extra_data().hex()}"


def _quote(data: bytes) -> Lines:
    evidence = QuoteEvidence.decode(data)
    yield "TPM quote"
    yield from attest_lines(evidence.quote)
    yield f"  signature: {evidence.signature.scheme} with {evidence.signature.hash}"
    ak = evidence.ak
    yield f"  attestation key: {ak.curve or f'rsa{8 * len(ak.modulus)}'}, attributes 0x{ak.attributes:08x}"
    yield f"  attestation key name: {ak.name().hex()}"
    for bank, values in evidence.pcrs.items():
        for index, value in sorted(values.items()):
            yield f"  {bank} PCR {index:2}: {value.hex()}"


def attest_lines(quote: abi.Quote) -> Lines:
    yield f"  extraData: {quote.extra_data.hex()}"
    yield f"  qualified signer: {quote.qualified_signer.hex()}"
    yield f"  clock: {quote.clock} ms since it was made, safe: {quote.safe}"
    yield f"  boots: {quote.reset_count} resets, {quote.restart_count} restarts"
    yield f"  TPM firmware version: 0x{quote.firmware_version:016x}"
    for bank, indices in quote.selection:
        yield f"  selected of {bank}: PCR {', '.join(map(str, indices))}"
    yield f"  PCR digest: {quote.pcr_digest.hex()}"


def tcg_log(data: bytes) -> Lines:
    log = eventlog.parse_tcg(data)
    yield f"TCG event log: {len(log.events)} events, banks {', '.join(log.banks)}"
    yield from log_lines(log)


def systemd_log(data: bytes) -> Lines:
    log = eventlog.parse_systemd(data)
    yield f"systemd measurement log: {len(log.events)} events"
    yield from log_lines(log)


def log_lines(log: eventlog.EventLog) -> Lines:
    bank = "sha256" if "sha256" in log.banks else next(iter(log.banks), "")
    for event in log.events:
        digest = event.digests.get(bank, b"").hex()[:16]
        yield f"  PCR {event.pcr:2} {digest:16} {event.type}: {event.words()}"
    if bank:
        touched = {event.pcr for event in log.events if event.extends}
        for pcr, value in sorted(eventlog.replay(log.events, bank).items()):
            if pcr in touched:
                yield f"  replayed {bank} PCR {pcr:2}: {value.hex()}"


def _envelope(data: bytes) -> Lines:
    yield from _envelope_lines(jcs.loads(data))


def _envelope_lines(value: object) -> Lines:
    payload_type = value.get("payloadType") if isinstance(value, dict) else None
    if not isinstance(payload_type, str):
        raise BadInput(f"payloadType is {kind(payload_type)}", where="envelope")
    read = dsse.peek(value, payload_type)
    signers = [s.get("keyid") for s in value["signatures"]] if isinstance(value, dict) else []
    yield f"signed document {payload_type}, payload {read.digest}"
    for signer in signers:
        yield f"  says to be signed by {signer}"
    if isinstance(read.payload, dict):
        for name, member in read.payload.items():
            text = jcs.dumps(member).decode()
            yield f"  {name}: {text if len(text) <= 160 else f'{text[:150]}… ({len(text)} characters)'}"


def certificates(data: bytes) -> Lines:
    for found in certificate.load(data, where="file", padding=True):
        yield f"certificate of {found.name}"
        yield f"  issuer: {certificate.describe(found.issuer)}"
        yield f"  valid: {times.format_time(found.not_before)} to {times.format_time(found.not_after)}"
        yield f"  spki: {found.spki_digest}"
        for oid, extension in found.extensions.items():
            yield f"  extension {dotted(oid)}{' (critical)' if extension.critical else ''}"


def snp_report(data: bytes) -> Lines:
    from .snp import abi as snp
    from .snp import appraise, verify

    report = snp.parse_report(data, max_trailing=snp.MAX_TRAILING)
    yield "AMD SEV-SNP report"
    yield from facts(appraise.facts(verify.Verified(report, "", None, ())))


def hcl_report(data: bytes) -> Lines:
    from .azure import abi as azure
    from .azure import appraise, verify

    report = azure.parse_hcl(data)
    yield "Azure HCL report"
    found = verify.Verified(report, azure.parse_claims(report.claims), (), (), ())
    yield from facts(appraise.facts(found))
    if report.tee == "snp":
        yield from snp_report(report.hardware)


def facts(facts: dict[str, jcs.Json]) -> Lines:
    for name, value in facts.items():
        yield f"  {name}: {value if isinstance(value, str) else jcs.dumps(value).decode()}"


def _launch_disk(data: bytes) -> Lines:
    yield "launch disk"
    for line in _envelope_lines(launch.read_volume(data)):
        yield f"  {line}"


def _policy(data: bytes) -> Lines:
    found = policy.load(data)
    yield f"policy {found.digest}: environment {found.environment}, lowest tier {found.lowest_tier}"
    yield f"  images signed by: {', '.join(found.image.signers)}"
    yield f"  image manifests: {', '.join(found.image.allowed) or 'any of these signers'}"
    yield f"  launch documents: {', '.join(found.launch.signers + found.launch.allowed)}"
    yield f"  TPMs of: {', '.join(found.tpm.ek_roots) or 'nobody'}"
    yield f"  attestation keys vouched for by: {', '.join(found.tpm.ak_issuers) or 'nobody'}"
    yield f"  PCRs that must be as predicted: {', '.join(map(str, found.tpm.pcrs))}"
    yield f"  receipts of: {', '.join(found.receipt_keys) or 'nobody'}"


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], Lines]], ...] = (
    (_is_json_with("version", "evidence", "receipt"), _bundle),
    (_is_json_with("__cmwc_t"), _evidence),
    (_is_json_with("payloadType", "payload"), _envelope),
    (_is_json_with("attest", "ak_public"), _quote),
    (_is_json_with("nonce", "tls_spki"), _claims),
    (lambda data: data.startswith(launch.VOLUME_MAGIC), _launch_disk),
    (_is_policy, _policy),
)
_BY_LABEL: dict[str, Callable[[bytes], Lines]] = {
    "tcg-eventlog": tcg_log,
    "systemd-eventlog": systemd_log,
    "ek-certificate": certificates,
    "ak-certificate": certificates,
    sources.LABEL: _collateral_sources,
}
