# SPDX-License-Identifier: Apache-2.0
"""The same inputs to us and to an independent implementation, and the table of where the answers may differ.

A difference is a class of inputs with both answers and the reason why ours stays. Each is described in
docs/evidence/agreement.md under its name. An input with different answers that fits no class fails the test, and so
does a class that no input shows any more.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "evidence" / "agreement.md"
ACCEPTED, REFUSED = "accepted", "refused: "


@dataclass(frozen=True)
class Pair:
    """One input: what it is, our answer and theirs: ``accepted``, perhaps with a status, or ``refused: why``."""

    what: str
    ours: str
    theirs: str

    @property
    def same(self) -> bool:
        return self.ours == self.theirs or (self.ours.startswith(REFUSED) and self.theirs.startswith(REFUSED))


@dataclass(frozen=True)
class Difference:
    """A class of differences: patterns that the whole of input, our answer and their answer match."""

    name: str
    what: str
    ours: str
    theirs: str

    def covers(self, pair: Pair) -> bool:
        parts = ((self.what, pair.what), (self.ours, pair.ours), (self.theirs, pair.theirs))
        return all(re.fullmatch(pattern, text, re.DOTALL) for pattern, text in parts)


def refused(why: object) -> str:
    return f"{REFUSED}{why}"


def compare(pairs: Sequence[Pair], differences: Sequence[Difference], other: str) -> None:
    """Fail on a difference that is not documented, and on a documented one that no pair shows."""
    seen: Counter[str] = Counter()
    unexplained = []
    for pair in pairs:
        if pair.same:
            seen["same"] += 1
            continue
        names = [difference.name for difference in differences if difference.covers(pair)]
        seen.update(names[:1])
        if not names:
            unexplained.append(f"{pair.what}\n    ours   {pair.ours}\n    theirs {pair.theirs[:300]}")
    both = sum(pair.ours == pair.theirs for pair in pairs if pair.ours.startswith(ACCEPTED))
    counts = ", ".join(f"{name} {count}" for name, count in sorted(seen.items()))
    print(f"{len(pairs)} inputs to us and {other}, {both} accepted by both: {counts}")
    assert not unexplained, f"{len(unexplained)} undocumented differences:\n" + "\n".join(unexplained[:30])
    gone = sorted({difference.name for difference in differences} - set(seen))
    assert gone == [], f"documented in {PAGE.name}, but no input shows it"
    page = PAGE.read_text()
    assert [d.name for d in differences if f"`{d.name}`" not in page] == [], f"not in {PAGE.name}"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def google(requests: Iterable[Mapping[str, Any]]) -> list[str]:
    """The answers of go-sev-guest and go-tdx-guest (tools/peers/main.go); skips where the program is not built."""
    sys.path.append(str(ROOT / "tools"))
    import peers

    program = peers.built()
    if program is None:
        pytest.skip("go-sev-guest and go-tdx-guest are not built: python tools/peers.py build")
    lines = "\n".join(json.dumps(request) for request in requests)
    done = subprocess.run([program, "verify"], input=lines, capture_output=True, text=True, timeout=240, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [ACCEPTED if answer["accepted"] else refused(answer["error"]) for answer in answers]


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
