# SPDX-License-Identifier: Apache-2.0
"""Every parser of bytes from outside as one function of bytes, with the errors that its contract names.

A target swallows nothing: what escapes beside ``expected`` is a finding. Targets named ``verify-*`` replace one
item of a whole, correctly signed bundle and ask for the verdict, which must come out without any exception.
"""

from __future__ import annotations

import functools
import io
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from cube_attestation import (
    bundle,
    client,
    control,
    describe,
    domains,
    dsse,
    explain,
    fields,
    importing,
    inspect_parts,
    jcs,
    launch,
    manifest,
    policy,
    policy_lint,
    policy_words,
    reports,
    times,
    verifier,
)
from cube_attestation.audit.verify import examine
from cube_attestation.azure import abi as azure
from cube_attestation.azure import containers
from cube_attestation.check import Given, check
from cube_attestation.check.result import KINDS
from cube_attestation.claims import Claims
from cube_attestation.cmw import Collection, Item
from cube_attestation.collateral import listing, needs, sources
from cube_attestation.collateral.model import Context
from cube_attestation.connect import head as connect_head
from cube_attestation.errors import BadInput, KeyMismatch, NotAuthentic, Unreachable
from cube_attestation.nvidia import abi as nvidia
from cube_attestation.nvidia import items as nvidia_items
from cube_attestation.nvidia import ocsp, rim
from cube_attestation.nvidia import verify as nvidia_verify
from cube_attestation.recognise import recognise
from cube_attestation.snp import abi as snp
from cube_attestation.snp import verify as snp_verify
from cube_attestation.tdx import abi as tdx
from cube_attestation.tdx import ccel, collateral, endorsement
from cube_attestation.tokens import abi as tokens
from cube_attestation.tokens import items as token_items
from cube_attestation.tpm import abi as tpm
from cube_attestation.tpm import eventlog
from cube_attestation.tpm import verify as tpm_verify
from cube_attestation.x509 import certificate, crl, der, keys
from cube_proxy import audit_line, ollama_store
from cube_proxy import http as proxy_http

INTEL_SGX = der.oid(tdx.SGX_EXTENSION)
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
WORLDS = ("local", "snp", "azure", "azure_tdx", "tdx", "gpu", "a3-highgpu-1g", "NCC40ads_H100_v5")


@dataclass(frozen=True)
class Target:
    """``run`` takes any bytes; it may raise only ``expected``. ``material``: the recognised parts that seed it."""

    name: str
    run: Callable[[bytes], object]
    expected: tuple[type[Exception], ...] = (BadInput,)
    material: tuple[str, ...] = ()


# --- several steps over one parsed value ---


def _json(data: bytes) -> None:
    value = jcs.loads(data)
    if len(data) < 4096:
        assert jcs.loads(jcs.dumps(value), canonical=True) == value


def _bundle(data: bytes) -> None:
    found = bundle.load(data)
    assert bundle.load(bundle.dump(found)) == found
    explain.explain(found)


def _dsse(data: bytes) -> None:
    """With the signer's own key among the accepted ones where the envelope names none."""
    envelope = jcs.loads(data)
    for kind in (dsse.LAUNCH, dsse.IMAGE_MANIFEST, dsse.RECEIPT, dsse.CONTROL):
        try:
            dsse.peek(envelope, kind)
            dsse.verify(envelope, kind, _public_keys())
        except (BadInput, NotAuthentic):
            continue


@functools.cache
def _public_keys() -> tuple[bytes, ...]:
    """One P-256 key that signed nothing: the generator's point."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return (dsse.spki(ec.derive_private_key(1, ec.SECP256R1()).public_key()),)


def _policy(data: bytes) -> None:
    found = policy.load(data)
    policy_lint.lint(found, data)
    policy_words.text(policy_words.explain(found))


def _manifest(data: bytes) -> None:
    found = dsse.peek(jcs.loads(data), dsse.IMAGE_MANIFEST) if data[:12] == b'{"payload":"' else None
    manifest.parse(found.payload if found else jcs.loads(data))


def _launch(data: bytes) -> None:
    value = jcs.loads(data)
    launch.peek(value) if isinstance(value, dict) and "payload" in value else launch.parse(value)


def _control(data: bytes) -> None:
    value = jcs.loads(data)
    for parse in (control.Admit.from_json, control.parse_revoke, domains.parse):
        try:
            cast("Callable[[object], object]", parse)(value)
        except BadInput:
            continue
    client.parse_state(value, where="state")


def _control_message(data: bytes) -> None:
    control.ControlMessage.verify(jcs.loads(data), _public_keys())


def _receipt(data: bytes) -> None:
    bundle.verify_receipt(jcs.loads(data), _public_keys())


def _snp_report(data: bytes) -> None:
    snp.parse_report(data, max_trailing=len(data))
    list(describe.snp_report(data))


def _tdx_quote(data: bytes) -> None:
    found = tdx.parse_quote(data)
    if found.cert_type == tdx.CERT_PCK_CHAIN:
        certificate.load(found.cert_data, where="PCK chain", padding=True)


def _ccel(data: bytes) -> None:
    log = ccel.parse(data)
    ccel.replay(log)
    ccel.programs(log)
    ccel.sections(log)
    ccel.endorsement_addresses(log)
    for register in range(4):
        [ccel.label(event) for event in ccel.of_register(log, register)]


def _tcg(data: bytes) -> None:
    log = eventlog.parse_tcg(data)
    for bank in ("sha1", "sha256", "sha384"):
        eventlog.replay((event for event in log.events if bank in event.digests), bank)
    list(describe.log_lines(log))


def _hcl(data: bytes) -> None:
    found = azure.parse_hcl(data)
    azure.parse_claims(found.claims)


def _certificate(data: bytes) -> None:
    """Everything that any reader asks a certificate for."""
    for one in certificate.load(data, where="certificate", padding=True):
        certificate.describe(one.subject)
        certificate.describe(one.issuer)
        certificate.attributes(one.subject)
        one.basic_constraints()
        one.key_usage()
        one.extended_key_usage()
        keys.public_key(one.spki)
        keys.verify(one.spki, one.algorithm, one.tbs, one.signature)


def _pck(data: bytes) -> None:
    tdx.parse_pck_extension(data)


def _vcek(data: bytes) -> None:
    for one in certificate.load(data, where="certificate", padding=True):
        snp.parse_endorsement_key(one)


def _collateral(data: bytes) -> None:
    found = collateral.from_json(data)
    if found.tcb_info is not None:
        collateral.parse_tcb_info(found.tcb_info.content)
    if found.qe_identity is not None:
        collateral.parse_qe_identity(found.qe_identity.content)


def _endorsement(data: bytes) -> None:
    endorsement.verify(endorsement.parse(data), (), NOW)


def _spdm(data: bytes) -> None:
    report = nvidia.parse_report(nvidia.decode_report(data))
    nvidia.switch_links(report)
    nvidia.gpu_links(report)


def _devices(data: bytes) -> None:
    for device in nvidia.decode_evidence(data):
        nvidia.parse_report(device.report)
        nvidia_verify.load_chain(device.chain)


def _rim(data: bytes) -> None:
    rim.parse(data)
    rim.verify(data, frozenset(), NOW)


def _token(data: bytes) -> None:
    tokens.parse_set(data) if tokens.is_set(data) else tokens.parse(data)


def _jwks(data: bytes) -> None:
    tokens.load_keys(data)


def _tpm_quote_item(data: bytes) -> None:
    tpm_verify.verify_quote(tpm_verify.QuoteEvidence.decode(data))


def _public(data: bytes) -> None:
    tpm.parse_public(data).qualified_name(tpm.RH_ENDORSEMENT)


def _recognised(data: bytes) -> None:
    for _ in inspect_parts.describe_material(recognise(data)):
        pass


def _imported(data: bytes) -> None:
    found = importing.bundle(recognise(data))
    bundle.load(bundle.dump(found))


def _check(kind: str, data: bytes) -> None:
    check(Given(kind, recognise(data), NOW, nonce=b"\1" * 32)).dump()


# --- the client's answers, from the first byte after TLS ---


class _Secured(socket.socket):
    """What TLS would hand over: the machine's bytes, behind a certificate."""

    def __init__(self, data: bytes) -> None:
        here, there = socket.socketpair()
        super().__init__(fileno=here.detach())
        self._there = there
        self._data = data

    def getpeercert(self, binary_form: bool = False) -> bytes:
        return _leaf()

    def sendall(self, data: Any, flags: int = 0) -> None:
        """The request goes nowhere."""

    def makefile(self, *_: Any, **__: Any) -> Any:
        return io.BufferedReader(io.BytesIO(self._data))

    def close(self) -> None:
        self._there.close()
        super().close()


class _Context:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def wrap_socket(self, raw: socket.socket, **_: object) -> _Secured:
        raw.close()
        return _Secured(self._data)


@functools.cache
def _leaf() -> bytes:
    from datetime import timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.derive_private_key(1, ec.SECP256R1())
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _answer(data: bytes) -> None:
    """The first byte chooses what was asked for; the rest is the machine's answer, status line and all."""
    choice, data = data[:1], data[1:]
    real = client.tls_context
    client.tls_context = lambda: cast("Any", _Context(data))
    try:
        dial = _dial
        if choice < b"\x40":
            client.fetch("m:1", bytes(32), attempts=1, dial=dial)
        elif choice < b"\x80":
            client.state("m:1", expected_spki=client.spki_of(_leaf()), attempts=1, dial=dial)
        elif choice < b"\xc0":
            client.ready("m:1", dial=dial)
        else:
            client.control_call("m:1", "admit", {}, expected_spki=client.spki_of(_leaf()), dial=dial)
    finally:
        client.tls_context = real


def _dial(_: object, __: float) -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


# --- whole bundles with one item replaced ---


@dataclass(frozen=True)
class _World:
    found: bundle.Bundle
    rules: policy.Policy
    labels: tuple[str, ...]


@functools.cache
def _world(folder: Path, name: str) -> _World:
    found = bundle.load((folder / f"{name}.json").read_bytes())
    rules = policy.load((folder / f"{name}.toml").read_bytes())
    return _World(found, rules, labels(found))


def labels(found: bundle.Bundle) -> tuple[str, ...]:
    """The order in which a ``verify-*`` input's first byte chooses."""
    return tuple(sorted(found.evidence.items))


def _changed(world: _World, data: bytes) -> tuple[str, bundle.Bundle]:
    """The label that the first byte chooses, and the bundle with the rest as that item's bytes."""
    label = world.labels[data[0] % len(world.labels)]
    item = world.found.evidence.items[label]
    items = {**world.found.evidence.items, label: Item(item.media_type, data[1:], item.indicator)}
    return label, replace(world.found, evidence=Collection(items))


def _needs(folder: Path, name: str, data: bytes) -> None:
    """What the machine's evidence makes us ask the vendors for, and what of theirs is listed."""
    world = _world(folder, name)
    evidence = _changed(world, data or b"\0")[1].evidence
    context = Context.of(world.rules, NOW)
    needs.find(evidence, context)
    listing.rows(evidence, context)
    sources.read(evidence)


def _verify(folder: Path, name: str, data: bytes) -> None:
    if not data:
        return
    world = _world(folder, name)
    label, changed = _changed(world, data)
    item = world.found.evidence.items[label]
    verdict = verifier.verify(changed, world.rules, now=NOW, nonce=bytes(range(32)))
    assert label not in _STRICT or data[1:] == item.value or not verdict.passed, label
    for form in ("json", "html") if len(data) < _SHOWN and len(data) % 16 == 0 else ():
        reports.render(form, verdict, changed, subject="fuzzed")


_SHOWN = 64 << 10  # a page is as long as its logs, and takes ten times as long as the verdict
# Items of which every byte counts; others have more than one encoding of the same content
_STRICT = ("claims", "nvidia-devices", "snp-report")


def table(worlds: Path) -> Mapping[str, Target]:
    """All targets by name. ``worlds``: the folder with the bundles that ``verify-*`` start from."""
    found = [
        Target("json", _json),
        Target("json-canonical", lambda data: jcs.loads(data, canonical=True)),
        Target("bundle", _bundle),
        Target("dsse", _dsse),
        Target("policy", _policy),
        Target("manifest", _manifest),
        Target("launch", _launch),
        Target("launch-volume", launch.read_volume),
        Target("claims", Claims.decode),
        Target("control-body", _control),
        Target("control-message", _control_message, (BadInput, NotAuthentic)),
        Target("receipt", _receipt, (BadInput, NotAuthentic)),
        Target("http-answer", _answer, (BadInput, Unreachable, KeyMismatch)),
        Target("time", lambda data: times.parse(data.decode("latin-1"))),
        Target("base64", lambda data: fields.decode_base64(data.decode("latin-1"), where="text")),
        Target("address", lambda data: client.split(data.decode("utf-8", "replace"))),
        Target("der-certificate", _certificate, material=("certificates",)),
        Target("pem-chain", lambda data: certificate.load_all((data,), where="x"), material=("certificates",)),
        Target("tls-certificate", client.spki_of, material=("certificates",)),
        Target("crl", lambda data: crl.load_all(data, where="x"), material=("crls",)),
        Target("intel-crl", lambda data: collateral.crl_bytes(data, where="x"), material=("crls",)),
        Target("spki", keys.public_key),
        Target("snp-report", _snp_report, material=("snp_reports",)),
        Target("snp-table", snp.parse_table, material=("snp_tables",)),
        Target("snp-endorsement-key", _vcek, material=("certificates",)),
        Target("snp-endorsements", lambda data: snp_verify.read_endorsements((data,)), material=("certificates",)),
        Target("tdx-quote", _tdx_quote, material=("tdx_quotes",)),
        Target("tdx-report", tdx.parse_td_report, material=("td_reports",)),
        Target("tdx-pck-extension", _pck),
        Target("tdx-collateral", _collateral, material=("collateral",)),
        Target("tdx-endorsement", _endorsement, material=("endorsements",)),
        Target("ccel", _ccel, material=("logs",)),
        Target("tpm-attest", tpm.parse_quote, material=("attests",)),
        Target("tpm-signature", tpm.parse_signature, material=("signatures",)),
        Target("tpm-public", _public, material=("publics",)),
        Target("tpm-quote-item", _tpm_quote_item),
        Target("tcg-eventlog", _tcg, material=("logs",)),
        Target("systemd-eventlog", eventlog.parse_systemd, material=("systemd_logs",)),
        Target("azure-hcl", _hcl, material=("hcl_reports",)),
        Target("azure-claims", azure.parse_claims),
        Target("azure-container", containers.read),
        Target("azure-bincode", containers.read_bincode_quote),
        Target("nvidia-report", _spdm, material=("reports",)),
        Target("nvidia-devices", _devices),
        Target("nvidia-fwid", nvidia_verify.firmware_identities),
        Target("nvidia-chain", nvidia_verify.load_chain, material=("certificates",)),
        Target("nvidia-rim", _rim, (BadInput, NotAuthentic), material=("rims",)),
        Target("nvidia-ocsp", ocsp.load, material=("ocsp",)),
        Target("nvidia-ocsp-index", lambda data: ocsp.index((data,)), material=("ocsp",)),
        Target("nvidia-collateral", nvidia_items.decode_collateral),
        Target("token", _token, material=("tokens",)),
        Target("token-keys", _jwks, material=("keys", "offered_keys")),
        Target("token-item", token_items.decode),
        Target("recognise", _recognised, material=("files",)),
        Target("import", _imported, material=("files",)),
        Target("audit-export", examine),
        Target("connect-head", connect_head.complete, (connect_head.NoRequest,)),
        Target("proxy-audit-line", audit_line.parse, ()),
        Target("proxy-http-head", proxy_http.parse_head, (proxy_http.HttpError,)),
        Target("proxy-sidecar", ollama_store.parse_sidecar),
        *(Target(f"check-{kind}", functools.partial(_check, kind), material=("files",)) for kind in KINDS),
        *(Target(f"collateral-{name}", functools.partial(_needs, worlds, name), ()) for name in WORLDS),
        *(Target(f"verify-{name}", functools.partial(_verify, worlds, name), ()) for name in WORLDS),
    ]
    return {target.name: target for target in found}
