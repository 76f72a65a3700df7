# SPDX-License-Identifier: Apache-2.0
"""Every run-time dependency has a licence that fits Apache-2.0: permissive or weak copyleft, never stronger."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("attestation", "images", "proxy", "stacks", "templates")

ALLOWED = re.compile(
    r"apache|\bmit\b|\bbsd\b|\bisc\b|python software foundation|psf-2\.0|mozilla public|mpl-2\.0"
    r"|unlicense|zlib|0bsd|cc0",
    re.IGNORECASE,
)
REFUSED = re.compile(r"\bA?GPL|affero|gnu general|proprietary|\bsspl\b|commercial", re.IGNORECASE)


def _licence(distribution: metadata.Distribution) -> str:
    found = distribution.metadata
    classifiers = [
        c.rpartition("::")[2].strip() for c in found.get_all("Classifier", []) if c.startswith("License ::")
    ]
    return found.get("License-Expression") or "; ".join(classifiers) or (found.get("License") or "").split("\n")[0]


def _closure() -> dict[str, metadata.Distribution]:
    """Third-party distributions that the rooms need at run time, with everything that those need."""
    waiting: list[str] = []
    for room in ROOMS:
        waiting += tomllib.loads((ROOT / room / "pyproject.toml").read_text())["project"]["dependencies"]
    seen: dict[str, metadata.Distribution] = {}
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name in seen or requirement.name.startswith("cube-"):
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        seen[requirement.name] = metadata.distribution(requirement.name)
        waiting += seen[requirement.name].requires or []
    return seen


def test_runtime_dependencies_are_at_most_weak_copyleft() -> None:
    closure = _closure()
    assert {"cryptography", "pulumi", "jinja2"} <= set(closure), "the closure was not computed"
    bad = {
        name: licence
        for name, distribution in closure.items()
        if not ALLOWED.search(licence := _licence(distribution)) or REFUSED.search(licence)
    }
    assert bad == {}
