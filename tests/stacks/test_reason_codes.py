# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = r"(?:machine|domains|edge|gate)\.[a-z_]+(?:\.[a-z_]+)?"


def test_every_code_of_the_deployment_is_documented_and_only_those() -> None:
    sources = [ROOT / "stacks" / "cube_stacks" / name for name in ("gate.py", "provider")]
    files = [file for source in sources for file in ([source] if source.is_file() else source.glob("*.py"))]
    emitted = {code for file in files for code in re.findall(rf'"({CODE})(?::[^"]*)?"', file.read_text())}
    emitted |= {code for file in files for code in re.findall(rf'f"({CODE}): ', file.read_text())}
    emitted = {code for code in emitted if not code.endswith(".json")}
    rows = re.findall(rf"^\| `({CODE})` \|", (ROOT / "docs" / "reason-codes.md").read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(emitted)
