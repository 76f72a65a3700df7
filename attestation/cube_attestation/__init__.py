# SPDX-License-Identifier: Apache-2.0
"""Offline verification of confidential GPU machines.

``verify(bundle, policy, now=…)`` gives a ``Verdict``; ``load_bundle`` and ``load_policy`` read their files. Names
are resolved when first used, so that a guest which needs one small module does not pay for the verifier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bundle import Bundle
    from .bundle import load as load_bundle
    from .errors import AttestationError, BadInput
    from .policy import Policy
    from .policy import load as load_policy
    from .verdict import Verdict
    from .verifier import verify

__all__ = ["AttestationError", "BadInput", "Bundle", "Policy", "Verdict", "load_bundle", "load_policy", "verify"]

_HOMES = {
    "AttestationError": ("errors", "AttestationError"),
    "BadInput": ("errors", "BadInput"),
    "Bundle": ("bundle", "Bundle"),
    "Policy": ("policy", "Policy"),
    "Verdict": ("verdict", "Verdict"),
    "load_bundle": ("bundle", "load"),
    "load_policy": ("policy", "load"),
    "verify": ("verifier", "verify"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f".{module}", __name__), attribute)
