# SPDX-License-Identifier: Apache-2.0
"""The ``[nvidia]`` section of a policy: which devices, in which mode, vouched for by whom."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from cube_attestation.anchors import nvidia as anchors
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields

from . import abi

ALLOW_MISSING = ("nvidia.device_ocsp", "nvidia.rim_ocsp", "nvidia.driver_rim", "nvidia.vbios_rim", "nvidia.fwid")
MODES = ("spt", "mpt", "ppcie")


@dataclass(frozen=True)
class NvidiaPolicy:
    """The ``[nvidia]`` section of a policy. Empty lists of chips and boards take any; everything else is a rule.

    ``allow_missing`` names collateral that may be absent (of ALLOW_MISSING); ``devices`` and ``switches`` are exact
    counts, -1 for any; ``ocsp_max_age`` bounds a response's age whatever its nextUpdate says.
    """

    device_roots: frozenset[str] = frozenset(anchors.DEVICE_ROOTS)
    rim_roots: frozenset[str] = frozenset(anchors.RIM_ROOTS)
    chips: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("spt",)
    minimum_driver: str = ""
    minimum_vbios: str = ""
    devices: int = -1
    switches: int = -1
    allow_missing: frozenset[str] = frozenset()
    allow_expired_rim: bool = False
    ocsp_max_age: timedelta = timedelta(days=1)

    @classmethod
    def read(cls, fields: Fields) -> NvidiaPolicy:
        """Read the section. Raises BadInput with the member's path."""
        given: dict[str, object] = {}
        for name in ("device_roots", "rim_roots"):
            if fields.has(name):
                roots = fields.digests(name)
                if not roots:
                    raise BadInput("is empty, so nothing could ever be accepted", where=fields.path(name))
                given[name] = frozenset(roots)
        for name, pattern in (("chips", r"[A-Z0-9]{2,12}"), ("boards", r"[A-Za-z0-9-]{1,40}")):
            if fields.has(name):
                given[name] = fields.texts(name, 32, pattern=re.compile(pattern))
        if fields.has("modes"):
            modes = fields.texts("modes", 3)
            if not modes or not set(modes) <= set(MODES):
                raise BadInput(f"expected some of {', '.join(MODES)}", where=fields.path("modes"))
            given["modes"] = modes
        for name, pattern in (
            ("minimum_driver", r"\d+(\.\d+)*"),
            ("minimum_vbios", r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}"),
        ):
            if fields.has(name):
                given[name] = fields.text(name, pattern=re.compile(pattern))
        for name in ("devices", "switches"):
            if fields.has(name):
                given[name] = fields.integer(name, 0, abi.MAX_DEVICES)
        if fields.has("allow_missing"):
            missing = fields.texts("allow_missing", len(ALLOW_MISSING))
            if not set(missing) <= set(ALLOW_MISSING):
                raise BadInput(f"expected some of {', '.join(ALLOW_MISSING)}", where=fields.path("allow_missing"))
            given["allow_missing"] = frozenset(missing)
        if fields.has("allow_expired_rim"):
            given["allow_expired_rim"] = fields.boolean("allow_expired_rim")
        if fields.has("ocsp_max_age_s"):
            given["ocsp_max_age"] = timedelta(seconds=fields.integer("ocsp_max_age_s", 60, 366 * 86400))
        fields.done()
        return cls(**given)  # type: ignore[arg-type]  # each value was read as its member's type above
