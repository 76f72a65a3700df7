# SPDX-License-Identifier: Apache-2.0
"""Verdicts in the forms that other programs read: EAR, JUnit, SARIF, HTML. One verdict gives one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cube_attestation.bundle import Bundle
    from cube_attestation.verdict import Verdict

VERIFIER = "Cube Confidential"
FORMATS = ("json", "ear", "junit", "sarif", "html")


def version() -> str:
    """This verifier's version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return f"cube-attestation {installed('cube-attestation')}"
    except PackageNotFoundError:  # run from a source tree
        return "cube-attestation"


def render(form: str, verdict: Verdict, bundle: Bundle, *, subject: str) -> bytes:
    """``verdict`` over ``bundle`` in one of FORMATS. ``subject`` is what was verified: a file's name or a URL."""
    if form == "json":
        return verdict.dump()
    if form == "ear":
        from . import ear

        return ear.render(verdict)
    if form == "junit":
        from . import junit

        return junit.render(verdict)
    if form == "sarif":
        from . import sarif

        return sarif.render(verdict, subject)
    from . import html

    return html.render(verdict, bundle, subject)
