# SPDX-License-Identifier: Apache-2.0
"""JSON and simple YAML documents of other projects: known shapes first, else every value that holds evidence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from cube_attestation import jcs
from cube_attestation.errors import BadInput

from .material import Device, Material, Quote

MAX_VALUES = 4096
MAX_DEPTH = 12
MAX_YAML = 256 << 10
MIN_TEXT = 32  # shorter texts are names and numbers
_BANKS = ("sha1", "sha256", "sha384", "sha512")


def of_json(text: bytes, layers: int) -> Material | None:
    """What a JSON document holds. Raises BadInput when it is no JSON, or a known shape and malformed."""
    try:
        value: object = json.loads(jcs.bounded(text.removeprefix(b"\xef\xbb\xbf"), where="JSON"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {str(error)[:80]}", where="JSON") from error
    return _Walk(layers).document(value, text)


def of_yaml(text: bytes, layers: int) -> Material | None:
    """What block mappings of strings hold: ``name: value``, folded (>) and literal (|) blocks. Raises BadInput."""
    if len(text) > MAX_YAML:
        return None
    value = _yaml(text.decode("utf-8", "replace").splitlines(), 0)
    return _Walk(layers).document(value, json.dumps(value).encode())


def vtpm_quote(quote: object) -> Material:
    """A quote of the Azure readers as material."""
    from cube_attestation.azure.verify import VtpmQuote

    if not isinstance(quote, VtpmQuote):
        raise BadInput("no quote", where="TPM quote")
    raw = quote.signature.value
    if quote.signature.scheme != "rsassa" or quote.signature.hash != "sha256":
        raise BadInput(f"a {quote.signature.scheme} signature", where="TPM quote")
    return Material(quotes=(Quote(quote.attest, raw, quote.pcrs),))


class _Walk:
    """One walk over a document, within bounds."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.left = MAX_VALUES

    def document(self, value: object, text: bytes) -> Material | None:
        """A whole document, whose bytes count where something in it is signed as text."""
        if isinstance(value, dict):
            if {"tcbInfo", "signature"} == set(value) or {"enclaveIdentity", "signature"} == set(value):
                return Material(collateral=(text,))
            if "__cmwc_t" in value or {"version", "evidence", "receipt"} <= set(value):
                return _bundle(value, self.layers)
        if _is_token_set(value):
            return Material(tokens=(text,))
        return self.any(value, "", 0) or _note(value)

    def any(self, value: object, name: str, depth: int) -> Material | None:
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            raise BadInput(f"more than {MAX_VALUES} values, or nested too deeply", where="JSON")
        if isinstance(value, dict):
            return self.mapping(value, name, depth)
        if isinstance(value, list):
            return self.array(value, name, depth)
        if isinstance(value, str) and len(value) >= MIN_TEXT:
            return self.text(value, name)
        return None

    def mapping(self, value: Mapping[str, object], name: str, depth: int) -> Material | None:
        names = set(value)
        if names & {"tcb_info", "qe_identity"} and all(
            isinstance(value.get(n, ""), str) for n in ("tcb_info", "qe_identity")
        ):
            return _collateral(value)
        if _is_key_set(value):
            return Material(keys=(json.dumps(value).encode(),))
        if "kty" in names:
            return Material(keys=(json.dumps({"keys": [value]}).encode(),))
        if "attestation_report" in names and isinstance(value["attestation_report"], dict):
            from . import snp_json

            rest = self.mapping({n: v for n, v in value.items() if n != "attestation_report"}, name, depth + 1)
            return Material(snp_reports=(snp_json.report(value["attestation_report"]),)) + (rest or Material())
        if {"evidence", "certificate"} <= names and (devices := _devices(value)):
            return devices
        if names >= {"message", "signature", "pcrs"} and isinstance(value["pcrs"], list):
            return _azure_quote(value)
        if {"quote", "pcrs"} <= names and names & {"rawSig", "raw_sig"}:
            return _tpm_quote(value)
        if names >= {"attest", "signature", "ak_public"}:
            return _cube_quote(value)
        if _is_pcrs(value, name):
            return Material(pcrs=(_pcrs(value),))
        if "pcrs" in names and (bank := str(value.get("hash", "")).lower().replace("-", "")) in _BANKS:
            return Material(pcrs=(_pcrs({bank: value["pcrs"]}),))
        found = Material()
        for member, inner in value.items():
            found += self.any(inner, member, depth + 1) or Material()
        return found or None

    def array(self, value: list[object], name: str, depth: int) -> Material | None:
        if len(value) >= 32 and all(isinstance(n, int) and 0 <= n <= 255 for n in value):
            return self.raw(bytes(int(str(n)) for n in value), name)
        if len(value) == 24 and (bank := _bank_of(value)):
            return Material(pcrs=(_pcrs({bank: value}),))
        if value and all(isinstance(e, dict) and {"imr", "digest", "event_type"} <= set(e) for e in value):
            return Material(cc_events=(json.dumps(value).encode(),))
        if _is_token_set(value):
            return Material(tokens=(json.dumps(value).encode(),))
        found = Material()
        for inner in value:
            found += self.any(inner, name, depth + 1) or Material()
        return found or None

    def text(self, value: str, name: str) -> Material | None:
        from .content import decodings, look

        if not self.layers:
            return None
        found = look(value.encode(), self.layers - 1)
        if found is None and value.isascii() and (raw := decodings("".join(value.split()).encode())):
            found = _unmarked(raw[0], name)
        return found

    def raw(self, data: bytes, name: str) -> Material | None:
        from .content import look

        found = look(data, self.layers - 1) if self.layers else None
        return _unmarked(data, name) if found is None else found


def _unmarked(data: bytes, name: str) -> Material | None:
    """Bytes without a mark whose member's name says what they are."""
    if "sig" in name.lower() and len(data) in (256, 384, 512):
        return Material(signatures=(data,))
    return None


def _is_key_set(value: Mapping[str, object]) -> bool:
    """A JWK set; Azure's runtime claims hold keys as well."""
    keys = value.get("keys")
    return (
        isinstance(keys, list)
        and "vm-configuration" not in value
        and any(isinstance(key, dict) and "kty" in key for key in keys)
    )


def _is_token_set(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], list)
        and value[0][:1] == ["JWT"]
        and isinstance(value[1], dict)
    )


def _bundle(value: Mapping[str, object], layers: int) -> Material:
    """The items of our own bundles and collections."""
    from cube_attestation.cmw import Collection

    from .content import look

    collection = Collection.from_json(value.get("evidence", value))
    found = Material(notes=("a bundle of this project: `attestation verify` appraises it as a whole",))
    for label, item in collection.items.items():
        if label == "nvidia-collateral":
            from cube_attestation.nvidia.items import decode_collateral

            given = decode_collateral(item.value)
            found += Material(rims=given.rims, ocsp=given.ocsp)
        elif label not in ("claims", "launch", "image-manifest", "collateral-sources"):
            found += look(item.value, layers - 1) or Material()
    return found


def _collateral(value: Mapping[str, object]) -> Material:
    """Chains, documents and lists by name; lists of bytes and base64 become the hex that the reader takes."""
    from .content import decodings

    kept = {name: inner for name, inner in value.items() if isinstance(inner, str)}
    for name in ("root_ca_crl", "pck_crl"):
        given = value.get(name)
        if isinstance(given, list) and all(isinstance(n, int) and 0 <= n <= 255 for n in given):
            kept[name] = bytes(given).hex()
        elif isinstance(given, str) and "-----BEGIN" not in given:
            lists = [one for one in decodings("".join(given.split()).encode("ascii", "replace")) if one[:1] == b"0"]
            kept[name] = lists[0].hex() if lists else given
    return Material(collateral=(json.dumps(kept).encode(),))


def _devices(value: Mapping[str, object]) -> Material | None:
    """A device of NVIDIA's tools; None when the evidence is something else's. Raises BadInput."""
    from cube_attestation.nvidia import abi

    if not isinstance(value["evidence"], str) or not isinstance(value["certificate"], str):
        return None
    found = abi.decode_evidence(json.dumps([value]).encode())
    if found[0].report[:2] != b"\x11\xe0":
        return None
    return Material(devices=tuple(Device(one.report, one.chain) for one in found))


def _azure_quote(value: Mapping[str, object]) -> Material:
    from cube_attestation.azure import containers
    from cube_attestation.fields import Fields

    return vtpm_quote(containers.read_quote(Fields(value, "TPM quote")))


def _tpm_quote(value: Mapping[str, object]) -> Material:
    """go-tpm-tools' ``tpm.Quote`` in its JSON form. Raises BadInput."""
    from .content import decodings

    parts = [str(value["quote"]), str(value.get("rawSig", value.get("raw_sig")))]
    decoded = [decodings(part.encode("ascii", "replace")) for part in parts]
    given = value["pcrs"]
    if not all(decoded) or not isinstance(given, dict) or not isinstance(given.get("pcrs"), dict):
        raise BadInput("quote, signature or PCR values can't be read", where="TPM quote")
    bank = str(given.get("hash", "")).lower()
    if bank not in _BANKS:
        raise BadInput(f"PCR bank {bank[:16]!r} is not known", where="TPM quote")
    return Material(quotes=(Quote(decoded[0][-1], decoded[1][-1], _pcrs({bank: given["pcrs"]})),))


def _cube_quote(value: Mapping[str, object]) -> Material:
    from cube_attestation.fields import Fields
    from cube_attestation.tpm.verify import QuoteEvidence

    found = QuoteEvidence.decode(json.dumps(value).encode())
    signature = Fields(value, "TPM quote").base64("signature", 4096)
    return Material(quotes=(Quote(found.attest, signature, found.pcrs),), publics=(found.ak.raw,))


def _is_pcrs(value: Mapping[str, object], name: str) -> bool:
    """``{"sha256": {"0": hex, …}}``, or the inner object below a name with "pcr" in it."""
    banks = [str(n).lower() for n in value]
    if banks and all(bank in _BANKS for bank in banks):
        return all(isinstance(inner, dict | list) for inner in value.values())
    return "pcr" in name.lower() and bool(banks) and all(re.fullmatch(r"[0-9]{1,2}", bank) for bank in banks)


def _bank_of(values: list[object]) -> str:
    sizes = {len(v) for v in values if isinstance(v, str)}
    return {40: "sha1", 64: "sha256", 96: "sha384"}.get(sizes.pop() if len(sizes) == 1 else 0, "")


def _pcrs(value: Mapping[str, object]) -> Mapping[str, Mapping[int, bytes]]:
    """PCR values by bank and index; hex or base64. Raises BadInput."""
    from .content import decodings

    if not any(str(name).lower() in _BANKS for name in value):
        first = next(iter(value.values()), "")
        size = len(decodings(str(first).encode())[0]) if decodings(str(first).encode()) else 0
        value = {{20: "sha1", 32: "sha256", 48: "sha384"}.get(size, "sha256"): value}
    found: dict[str, dict[int, bytes]] = {}
    for bank, given in value.items():
        entries = enumerate(given) if isinstance(given, list) else given.items() if isinstance(given, dict) else ()
        size = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}[bank.lower()]
        values = found.setdefault(bank.lower(), {})
        for index, text in entries:
            matching = [d for d in decodings(str(text).strip().encode()) if len(d) == size]
            if not matching or not str(index).isdecimal() or int(index) > 31:
                raise BadInput(f"{bank} PCR {str(index)[:8]} is no value of {size} bytes", where="PCR values")
            values[int(index)] = matching[0]
    return found


def _note(value: object) -> Material | None:
    """JSON that speaks about evidence and is none."""
    if isinstance(value, dict | list) and value:
        return Material(notes=("JSON that holds no evidence that could be checked",))
    return None


def _yaml(lines: list[str], depth: int) -> dict[str, object]:
    """Block mappings by indentation. Anything else (anchors, lists, flow) is left out: nothing here needs it."""
    _bounded(depth)
    found: dict[str, object] = {}
    at = 0
    while at < len(lines):
        match = re.match(r"( *)([A-Za-z_][A-Za-z0-9_-]*):(?: +(.*))?$", lines[at])
        at += 1
        if match is None:
            continue
        indent, name, rest = len(match[1]), match[2], (match[3] or "").strip()
        start = at
        while at < len(lines) and (
            not lines[at].strip()
            or len(lines[at]) - len(lines[at].lstrip()) > indent
            or (not rest and lines[at][indent:].startswith("- "))
        ):
            at += 1
        block = lines[start:at]
        if rest[:1] in ("|", ">"):
            joined = "\n" if rest[0] == "|" else ""
            found[name] = joined.join(line.strip() for line in block).strip()
        elif rest[:1] == '"':
            try:
                found[name] = json.loads(rest)
            except ValueError:
                found[name] = rest
        elif rest:
            found[name] = rest.strip("'") + "".join(line.strip() for line in block)
        elif block and block[0].lstrip().startswith("- "):
            found[name] = _yaml_list([line for line in block if line.strip()], depth + 1)
        else:
            found[name] = _yaml(block, depth + 1)
    return found


def _bounded(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BadInput("nested too deeply", where="YAML")


def _yaml_list(lines: list[str], depth: int) -> list[object]:
    """Block sequences of numbers, texts and sequences: ``- 1``, ``- - 1``."""
    _bounded(depth)
    indent = len(lines[0]) - len(lines[0].lstrip())
    found: list[object] = []
    at = 0
    while at < len(lines):
        rest = lines[at].strip()[2:]
        start = at
        at += 1
        while at < len(lines) and len(lines[at]) - len(lines[at].lstrip()) > indent:
            at += 1
        if rest in ("|", "|-", ">", ">-"):
            found.append(("\n" if rest[0] == "|" else "").join(line.strip() for line in lines[start + 1 : at]))
        elif rest.startswith("- "):
            found.append(_yaml_list([" " * (indent + 2) + rest, *lines[start + 1 : at]], depth + 1))
        else:
            found.append(int(rest) if rest.isdecimal() else rest.strip("'\""))
    return found
