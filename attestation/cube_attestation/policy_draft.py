# SPDX-License-Identifier: Apache-2.0
"""A commented policy for machines of one signed image, to be completed and reviewed by whoever will rely on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import dsse, jcs, manifest
from .errors import BadInput, NotAuthentic
from .policy import NEEDED_PCRS

MACHINES = ("local", "snp", "gcp", "azure")
_TIERS = {"local": "software", "snp": "hardware", "gcp": "hardware", "azure": "hardware-paravisor"}


@dataclass(frozen=True)
class Choices:
    """What a manifest can't say. Keys are SPKI digests; empty ones are left for the reader to fill in."""

    environment: str
    machine: str
    launch_keys: Sequence[str] = ()
    ek_roots: Sequence[str] = ()
    ak_issuers: Sequence[str] = ()
    receipt_keys: Sequence[str] = ()
    gpus: int = 0
    pin: bool = False  # this one image only


def draft(envelope: object, choices: Choices) -> str:
    """The policy's text. Raises BadInput for a manifest that is malformed or that no key of its own signed."""
    read = dsse.peek(envelope, dsse.IMAGE_MANIFEST, where="manifest")
    image = manifest.parse(read.payload)
    signers = _signers(envelope)
    pcrs = sorted({*NEEDED_PCRS, *image.reference.pcrs})
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# Policy for machines of the image {_plain(image.id)} (flavour {_plain(image.flavour)}).",
        "# Written from the image's manifest. A manifest says what an image measures, not whether to trust it:",
        "# compare every digest below with what its owner tells you by another way.",
        "version = 1",
        f"environment = {_quoted(choices.environment)}",
        f'lowest_tier = "{_TIERS[choices.machine]}"  # hardware, hardware-paravisor, provider-vtpm or software',
        "max_clock_skew_s = 60  # between the machine's clock and ours",
        "",
        "[image]",
        "# Who may sign images: the keys that signed this manifest.",
        _member("signers", signers),
        "# Manifests by digest. Left out: every image of these signers, also older ones.",
        ("" if choices.pin else "# ") + _member("allowed", [image.identity]),
        *(["# THIS IMAGE IS FOR DEBUGGING, so that it is refused as this stands."] if image.debug else []),
        "debug = false  # debugging images have a way in",
        "",
        "[launch]",
        "# Operators whose launch documents (models, control keys) are accepted.",
        _filled("signers", choices.launch_keys, "the operator's control key"),
        "minimum_revision = 1  # raise it when an older document must not be used any more",
        "",
        "[tpm]",
    ]
    if choices.machine == "local":
        lines += [
            "# Makers of TPMs, and who certifies attestation keys after activating them in such a TPM.",
            _filled("ek_roots", choices.ek_roots, "the root of the TPM's maker"),
            _filled("ak_issuers", choices.ak_issuers, "the environment's CA"),
        ]
    lines += [
        "# Registers that must have exactly the predicted values: those that the manifest predicts, and 8 by the",
        "# launch document. 4, 8, 9 and 11 can't be left out.",
        f"pcrs = [{', '.join(map(str, pcrs))}]",
        "",
        *_MACHINE_SECTIONS[choices.machine],
    ]
    if choices.gpus:
        lines += [
            "[nvidia]",
            "# Every GPU must be there, with manifests and revocation answers of NVIDIA's.",
            f"devices = {choices.gpus}",
            'modes = ["spt"]  # spt: one GPU to a machine; ppcie: eight, with their switches',
            '# minimum_driver = "580.95.05"',
            "",
        ]
    lines += [
        "[freshness]",
        "# Gates whose receipts say when a bundle was fresh, for verifying it later. Left out: never checked.",
        _member("receipt_keys", choices.receipt_keys) if choices.receipt_keys else '# receipt_keys = ["sha256:…"]',
    ]
    return "\n".join(lines) + "\n"


_MACHINE_SECTIONS: dict[str, tuple[str, ...]] = {
    "local": (),
    "snp": (
        "[snp]",
        "# Which firmware: the launch measurement of it with this image, or who signed its ID block.",
        '# measurements = ["<96 hex digits>"]  # TO FILL IN',
        "# Versions below which AMD's firmware has known holes; a product line without an entry is then refused.",
        "# [snp.minimum_tcb.Genoa]",
        "# bootloader = 10",
        "# tee = 0",
        "# snp = 23",
        "# microcode = 84",
        "",
    ),
    "gcp": (
        "[tdx]",
        "# Which firmware: MRTD by value, or by an endorsement of Google's under a root that you took from Google.",
        '# mrtd = ["<96 hex digits>"]  # TO FILL IN, or:',
        '# endorsement_roots = ["sha256:…"]',
        "# RTMR1 is the unified kernel image, RTMR2 its sections. Left out, the event log must explain each event",
        "# by its content or by [[tdx.events]].",
        '# rtmr1 = ["<96 hex digits>"]',
        '# rtmr2 = ["<96 hex digits>"]',
        'tcb_statuses = ["UpToDate"]',
        "max_collateral_age_s = 2592000  # 30 days",
        "",
    ),
    "azure": (
        "[azure]",
        "# The paravisor's least security version; its ID keys are those that this verifier knows as Microsoft's.",
        "# minimum_guest_svn = 10  # TO FILL IN",
        'console = "off"  # Azure reports the serial console as on for most machines; see docs/evidence/azure.md',
        "secure_boot = true",
        "",
    ),
}


def _signers(envelope: object) -> list[str]:
    """The keys whose signatures over the manifest hold. Raises BadInput if there is none."""
    listed = envelope.get("signatures") if isinstance(envelope, dict) else None
    named = [entry.get("keyid") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    found: list[str] = []
    for keyid in named:
        try:
            if isinstance(keyid, str) and keyid not in found:
                dsse.verify(envelope, dsse.IMAGE_MANIFEST, [keyid], where="manifest")
                found.append(keyid)
        except NotAuthentic:
            continue
    if not found:
        raise BadInput(
            "no signature of it holds", where="manifest", todo="take the signed manifest.json of the image"
        )
    return found


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _quoted(text: str) -> str:
    return jcs.dumps(text).decode()


def _member(name: str, digests: Sequence[str]) -> str:
    return f"{name} = [{', '.join(map(_quoted, digests))}]"


def _filled(name: str, digests: Sequence[str], what: str) -> str:
    return _member(name, digests) if digests else f'# {name} = ["sha256:…"]  # TO FILL IN: {what}'
