# SPDX-License-Identifier: Apache-2.0
"""The table of reason codes is complete for every kind: code ↔ docs/reason-codes.md ↔ a test that makes it fire.

The families' own tests hold what they declare against the table; this one looks at what really fired in them.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import cube_attestation
import pytest
import recorded_codes
from cube_attestation.check.result import NAMES

HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "docs" / "reason-codes.md"
ROW = re.compile(r"^\| `([a-z0-9_.]+)` \| (?:([NRAO]) \| )?", re.MULTILINE)
# The deployment's own: no verdict carries them, tests/stacks/test_reason_codes.py keeps them
DEPLOYMENT = ("machine.", "domains.", "edge.", "gate.")
# The only test file that makes verdicts by hand
BY_HAND = f"{HERE.relative_to(HERE.parents[1])}/test_reports.py"


def rows() -> dict[str, str]:
    """Code → kind of every row. Tables of assumptions alone have no column of kinds."""
    found = ROW.findall(TABLE.read_text())
    return {code: kind or "A" for code, kind in found}


def attested() -> set[str]:
    return {code for code in rows() if not code.startswith(DEPLOYMENT)}


def families() -> set[str]:
    return {code.partition(".")[0] for code in attested()}


def test_no_code_has_two_rows_and_every_row_says_its_kind() -> None:
    counted = Counter(code for code, _ in ROW.findall(TABLE.read_text()))
    assert [code for code, count in counted.items() if count > 1] == []
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    assert len(lines) == len(rows())
    assert set(rows().values()) == {"N", "R", "A", "O"}


def test_every_code_that_stands_in_the_source_has_a_row() -> None:
    """In full, or with parts that are filled in where it is used (``f"tdx.chain.{why}"``)."""
    family = "|".join(sorted(families()))
    whole = re.compile(rf"(?:{family})(?:\.[a-z0-9_]+)+")
    partly = re.compile(rf"(?:{family})\.[a-z0-9_.\[\]+]*")
    unknown: list[str] = []
    for path in Path(cube_attestation.__file__).parent.rglob("*.py"):
        if path.parent.name == "prove":  # its mutations have names of the same form
            continue
        tree = ast.parse(path.read_text())
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(p.value) if isinstance(p, ast.Constant) else _ANY for p in node.values)
                if partly.fullmatch(text) and not any(
                    re.fullmatch(text.replace(".", "\\."), row) for row in rows()
                ):
                    unknown.append(f"{path.name}: {text}")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                known = node.value in rows() or node.value in NAMES or node.value in _NO_CODES
                if whole.fullmatch(node.value) and not known:
                    unknown.append(f"{path.name}: {node.value}")
    assert unknown == []


_ANY = "[a-z0-9_]+"
# What has the form of a code and is the name of something else
_NO_CODES = frozenset(("azure.ak", "collateral.toml", "tdx.tdx_td_attributes_debug"))


def test_every_code_of_the_table_fires_and_only_those(request: pytest.FixtureRequest) -> None:
    """The last test of a session that runs this whole room."""
    chosen = {item.path.name for item in request.session.items}
    absent = {path.name for path in HERE.rglob("test_*.py")} - chosen
    if absent:
        pytest.skip(
            f"tells something only after all tests of this room; not chosen: {', '.join(sorted(absent)[:3])}"
        )
    fired = {code: test for code, test in recorded_codes.fired.items() if not test.startswith(BY_HAND)}
    assert attested() - set(fired) == set(), "rows that no passing test of this session makes fire"
    assert set(fired) - attested() == set(), "codes that fire and have no row"
