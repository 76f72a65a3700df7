# SPDX-License-Identifier: Apache-2.0
"""What the page for auditors says to do by hand works as it stands there, and shows a forgery."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import whole_bundles
from cube_attestation import bundle as bundles
from cube_attestation.bundle import Bundle
from cube_attestation.claims import Claims
from cube_attestation.prove import forge, tpm
from cube_attestation.prove.case import Case

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verify-it-yourself.md"
TOOLS = ("bash", "openssl", "xxd", "sha256sum", "python3")


def script() -> str:
    """The blocks that begin with a comment, one after the other."""
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    run_as_they_stand = [block for block in blocks if block.startswith("# ")]
    assert len(run_as_they_stand) == 5
    return "set -eu\n" + "\n".join(run_as_they_stand)


def run(bundle: Bundle, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "bundle.json").write_bytes(bundles.dump(bundle))
    return subprocess.run(["bash", "-c", script()], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.fixture(autouse=True)
def tools() -> None:
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")


def test_a_genuine_bundle(tmp_path: Path) -> None:
    whole = whole_bundles.local()
    done = run(whole.bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the quote is over these claims" in done.stdout
    assert "Verified OK" in done.stdout
    assert "ek.pem: OK" in done.stdout
    assert whole.policy.tpm.ek_roots[0] in done.stdout
    for pcr in (4, 8, 9, 11):
        assert f"PCR {pcr} as predicted" in done.stdout
    assert "DIFFERS" not in done.stdout


def test_claims_edited_later(tmp_path: Path) -> None:
    bundle = whole_bundles.local().bundle
    item = bundle.evidence.items["claims"]
    edited = replace(Claims.decode(item.value), tls_spki="sha256:" + "0f" * 32).encode()
    forged = replace(bundle, evidence=bundle.evidence.with_item("claims", item.media_type, edited))
    assert "the quote is over these claims" not in run(forged, tmp_path).stdout


def test_a_signature_of_somebody_else(tmp_path: Path) -> None:
    whole = whole_bundles.local()
    claims = Claims.decode(whole.bundle.evidence.items["claims"].value)
    case = Case(whole.bundle, whole.policy, claims.time, claims.nonce, claims.tls_spki)
    done = run(tpm.requoted(case, forge.ec_key("somebody else")).bundle, tmp_path)
    assert done.returncode != 0
    assert "Verified OK" not in done.stdout
