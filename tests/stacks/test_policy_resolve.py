# SPDX-License-Identifier: Apache-2.0
import tomllib
from pathlib import Path

import pytest
from cube_attestation import policy
from cube_attestation.errors import BadInput
from cube_stacks.policy_resolve import Anchors, _string, resolve
from hypothesis import given
from hypothesis import strategies as st

IMAGE, LAUNCH, EK, AK, RECEIPT, OTHER = (f"sha256:{digit * 64}" for digit in "123456")
ANCHORS = Anchors(IMAGE, LAUNCH, EK, AK, RECEIPT)
SOURCE = """
version = 1
environment = "local"
lowest_tier = "software" # for development
[image]
debug = false
[launch]
minimum_revision = 2
[tpm]
pcrs = [4, 8, 9, 11]
"""


def resolved(source: str = SOURCE, tier: str = "software") -> policy.Policy:
    return policy.load(resolve(source.encode(), ANCHORS, "local", tier))


def test_what_the_source_leaves_out_is_filled_in() -> None:
    found = resolved()
    assert found.image.signers == (IMAGE,)
    assert found.launch.signers == (LAUNCH,)
    assert found.launch.minimum_revision == 2
    assert found.tpm.ek_roots == (EK,)
    assert found.tpm.ak_issuers == (AK,)
    assert found.receipt_keys == (RECEIPT,)
    assert found.tpm.pcrs == (4, 8, 9, 11)


def test_what_the_source_names_stays() -> None:
    named = SOURCE.replace("[image]", f'[image]\nsigners = ["{OTHER}"]').replace(
        "minimum_revision = 2", f'allowed = ["{OTHER}"]'
    )
    found = resolved(named + f'[freshness]\nreceipt_keys = ["{OTHER}"]\n')
    assert found.image.signers == (OTHER,)
    assert found.launch.allowed == (OTHER,)
    assert found.launch.signers == ()  # named by digest: a signature must not be another way in
    assert found.receipt_keys == (OTHER,)


def test_the_tier_can_only_be_raised() -> None:
    assert resolved(tier="hardware").lowest_tier == "hardware"
    assert resolved(SOURCE.replace('"software"', '"hardware"')).lowest_tier == "hardware"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("not TOML = ", "not TOML"),
        (SOURCE.replace('"local"', '"prod"'), "for environment 'prod'"),
        (SOURCE.replace('environment = "local"', ""), "for environment None"),
        (SOURCE.replace('"software"', '"wooden"'), "none of"),
        (SOURCE.replace('lowest_tier = "software"', ""), "none of"),
        (SOURCE.replace("pcrs = [4, 8, 9, 11]", "pcrs = [4]"), "other software would pass"),
        (SOURCE + "surprise = 1\n", "surprise"),
        (SOURCE.replace("[image]", "image = 1\n[other]"), "expected a table"),
        (SOURCE.replace("minimum_revision = 2", "minimum_revision = 2.5"), "strings, integers"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused(source: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        resolved(source)


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: (SOURCE + text).encode())))
def test_any_source_is_complete_or_refused(source: bytes) -> None:
    try:
        complete = resolve(source, ANCHORS, "local", "software")
    except BadInput:
        return
    assert policy.load(complete).environment == "local"


def test_resolving_is_stable_and_keeps_every_character() -> None:
    complete = resolve(SOURCE.encode(), ANCHORS, "local", "software")
    assert resolve(complete, ANCHORS, "local", "software") == complete


@pytest.mark.parametrize("text", ['a"b', "a\\b", "tab\tnewline\n", "\x01\x7f", "é 😀"])
def test_every_string_is_written_so_that_it_reads_back(text: str) -> None:
    assert tomllib.loads(f"name = {_string(text)}") == {"name": text}


def test_the_policy_of_the_local_environment_resolves() -> None:
    path = Path(__file__).parents[2] / "policies" / "local.toml"
    found = resolved(path.read_text())
    assert found.lowest_tier == "software"
    assert found.tpm.pcrs == (2, 4, 5, 7, 8, 9, 11)
    assert "signers" not in tomllib.loads(path.read_text())["image"]
