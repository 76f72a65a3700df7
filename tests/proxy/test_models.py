# SPDX-License-Identifier: Apache-2.0
"""Models: opened, tried by the canary, taken out when they fail; each against a real socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cube_attestation.launch import Model
from cube_proxy import canary
from cube_proxy.disks import DiskError
from cube_proxy.models import Models, volume_name
from hypothesis import given
from hypothesis import strategies as st

ONE = Model("ollama", "ab" * 32, 4096, 8192, "m0", "model.gguf")
OTHER = Model("ollama", "cd" * 32, 4096, 8192, "m1", "model.gguf")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def fill(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"GGUF")
    sidecar = {"version": 1, "model": "sha256:" + "cd" * 32, "size": 4, "config": {}, "template": "t", "params": {}}
    (folder / "ollama.json").write_text(json.dumps(sidecar))


def opened(run: Path, **models: Model) -> Models:
    found = Models(models, run, lambda name, model, place: fill(place))
    found.open_all()
    return found


def test_names_of_one_root_share_a_volume(tmp_path: Path) -> None:
    calls: list[str] = []

    def open_volume(name: str, model: Model, place: Path) -> None:
        calls.append(name)
        fill(place)

    models = Models({"a": ONE, "b": ONE, "c": OTHER}, tmp_path, open_volume)
    assert {claim.state for claim in models.claims().values()} == {"absent"}
    models.open_all()
    assert calls == [volume_name(ONE), volume_name(OTHER)]
    assert set(models.states.values()) == {"opened"}
    assert models.volumes() == {volume_name(ONE), volume_name(OTHER)}
    models.fail_volume(volume_name(ONE), "a changed block")
    assert models.states == {"a": "failed", "b": "failed", "c": "opened"}
    assert models.failed() == {"a", "b"}
    assert models.volumes() == {volume_name(OTHER)}


def test_a_volume_that_does_not_open_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def open_volume(name: str, model: Model, place: Path) -> None:
        if model is ONE:
            raise DiskError("no disk with serial m0 appeared; attach it")
        fill(place)

    models = Models({"a": ONE, "c": OTHER}, tmp_path, open_volume)
    models.open_all()
    assert models.states == {"a": "failed", "c": "opened"}
    assert "model a failed: no disk with serial m0 appeared; attach it" in capsys.readouterr().err


def test_a_volume_without_its_sidecar_fails(tmp_path: Path) -> None:
    models = Models({"a": ONE}, tmp_path, lambda name, model, place: place.mkdir(parents=True))
    models.open_all()
    assert models.states == {"a": "failed"}


def tried(tmp_path: Path, *answers: bytes) -> tuple[dict[str, str], list[bytes]]:
    """States after the canary met ``answers`` one by one, and what it sent."""
    sent: list[bytes] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        sent.append(await reader.readexactly(length))
        writer.write(left.pop(0))
        writer.close()

    async def go() -> dict[str, str]:
        models = opened(tmp_path, smollm2=ONE, again=ONE)
        changes: list[dict[str, str]] = []
        models.changed = lambda: changes.append(dict(models.states))
        server = await asyncio.start_unix_server(serve, tmp_path / "s")
        async with server, asyncio.timeout(10):
            await models.try_all(tmp_path / "s")
        assert changes == [models.states]
        return models.states

    return asyncio.run(go()), sent


def test_the_expected_word_makes_a_model_ready(tmp_path: Path) -> None:
    states, (body,) = tried(tmp_path, HEAD + event("The capital of France is") + event(" Par") + event("is."))
    assert states == {"smollm2": "ready", "again": "ready"}
    question = json.loads(body)
    assert (question["model"], question["temperature"], question["stream"]) == ("smollm2", 0, True)


def test_it_waits_for_a_backend_that_starts(tmp_path: Path) -> None:
    states, sent = tried(tmp_path, b"HTTP/1.1 503 Service Unavailable\r\n\r\n", HEAD + event("Paris"))
    assert states == {"smollm2": "ready", "again": "ready"}
    assert len(sent) == 2


def test_a_broken_answer_is_asked_for_again(tmp_path: Path) -> None:
    states, sent = tried(tmp_path, HEAD + event("The capital"), HEAD + event("Paris"))
    assert states == {"smollm2": "ready", "again": "ready"}
    assert len(sent) == 2


def test_another_answer_takes_the_model_out(tmp_path: Path) -> None:
    states, _ = tried(tmp_path, HEAD + event("garbage garbage") + b"data: [DONE]\n\n")
    assert states == {"smollm2": "failed", "again": "failed"}


@given(st.binary(max_size=100))
def test_any_event_gives_text_or_nothing(data: bytes) -> None:
    assert isinstance(canary.delta(data), str)
