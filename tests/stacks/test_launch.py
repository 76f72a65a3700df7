# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import pytest
from cube_attestation import dsse, launch
from cube_attestation.errors import BadInput
from cube_attestation.launch import Model
from cube_stacks.keys import SigningKey, environment_key, open_key
from cube_stacks.launch import SignedLaunch, sign

MODEL = Model("ollama", "ab" * 32, 4096, 8192, "vol-0123456789abcdef", "model.gguf")


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return open_key(environment_key("local", "control"))


def made(control: SigningKey, revision: int = 1, model: Model = MODEL) -> SignedLaunch:
    return sign("local", revision, ["localhost"], {"smollm2": model}, {"max_body_bytes": 1 << 20}, control)


def test_a_machine_reads_what_was_signed(control: SigningKey) -> None:
    signed = made(control)
    envelope = launch.read_volume(launch.write_volume(signed.envelope))
    verified = dsse.verify(envelope, dsse.LAUNCH, [control.keyid])
    document = launch.parse(verified.payload)
    assert document.models == {"smollm2": MODEL}
    assert document.control_key_digests() == (control.keyid,)
    assert verified.digest == signed.digest


def test_the_digest_is_of_what_is_said_not_of_who_signs_when(control: SigningKey) -> None:
    first, second = made(control), made(control)
    assert first.digest == second.digest
    assert first.envelope != second.envelope
    assert made(control, revision=2).digest != first.digest


@pytest.mark.parametrize(
    "change", [{"serial": "x" * 21}, {"file": "../etc/passwd"}, {"backend": "other"}, {"root": "ab"}, {"size": 100}]
)
def test_what_no_machine_would_read_is_not_signed(control: SigningKey, change: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        made(control, model=replace(MODEL, **change))  # type: ignore[arg-type]
