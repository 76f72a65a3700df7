# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation import dsse, jcs
from cube_images import build
from cube_images.paths import cache_dir
from cube_stacks import keys
from cube_stacks.provider.base import UNKNOWN, Context, Failed, Properties, Unhealthy
from cube_stacks.provider.measured_image import MeasuredImage

RESOURCE = MeasuredImage()


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Properties:
    """Inputs of an environment of the test's own, with nothing built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return {"source": "build:local", "imageKey": keys.environment_key("local", "image")}


def context(**more: Any) -> Context:
    return Context(urn="urn", timeout_s=None, progress=lambda _: None, warn=lambda _: None, **more)


def put(folder: Path, inputs: Properties) -> Properties:
    """Outputs of an image that stands in `folder`, as a build leaves it."""
    payload = {
        "image": "sha256:" + "1" * 64,
        "definition": "sha256:" + "2" * 64,
        "reference": {"pcrs": {"sha256": {"4": "3" * 64, "11": "4" * 64}}},
    }
    folder.mkdir(parents=True)
    (folder / "disk.img").write_bytes(b"disk")
    (folder / "payload.json").write_text(json.dumps(payload))
    envelope = dsse.sign(dsse.IMAGE_MANIFEST, payload, keys.open_key(inputs["imageKey"]))
    (folder / "manifest.json").write_text(json.dumps(envelope))
    return RESOURCE.preview(
        {**inputs, "source": f"manifest:{folder}/manifest.json@{dsse.digest(_canonical(payload))}"}
    )


def _canonical(payload: Any) -> bytes:

    return jcs.dumps(payload)


def test_the_definition_is_an_input_that_changes_with_the_code(inputs: Properties) -> None:
    found, failures = RESOURCE.check(inputs)
    assert failures == []
    assert found["definition"] == build.definition_digest("local")
    assert RESOURCE.diff({**found, "definition": "older"}, {}, found).updates == ("definition",)


def test_an_unknown_flavour_and_a_missing_manifest_are_named(inputs: Properties, tmp_path: Path) -> None:
    assert RESOURCE.check({**inputs, "source": "build:mars"})[1] == [
        ("source", "there is no flavour 'mars'; there is local")
    ]
    ((name, reason),) = RESOURCE.check({**inputs, "source": f"manifest:{tmp_path}/m.json@sha256:{'0' * 64}"})[1]
    assert name == "source"
    assert str(tmp_path) in reason


def test_a_preview_tells_predictions_only_of_what_was_built(inputs: Properties) -> None:
    assert RESOURCE.preview(inputs) == {}
    assert RESOURCE.preview_note(inputs) == "predicted measurements are unknown: not built"
    expected = put(cache_dir() / "images" / build.definition_digest("local"), inputs)
    found = RESOURCE.preview(inputs)
    assert found == expected
    assert found["pcrs"] == {"4": "3" * 64, "11": "4" * 64}
    assert RESOURCE.preview_note(inputs) == ""
    assert RESOURCE.preview({**inputs, "source": UNKNOWN}) == {}


def test_a_manifest_of_another_digest_is_refused(inputs: Properties, tmp_path: Path) -> None:
    put(tmp_path / "image", inputs)
    source = f"manifest:{tmp_path}/image/manifest.json@sha256:{'0' * 64}"
    ((_, reason),) = RESOURCE.check({**inputs, "source": source})[1]
    assert "has the digest" in reason
    with pytest.raises(Failed, match="has the digest"):
        RESOURCE.create(context(), {**inputs, "source": source})


def test_read_finds_it_well_gone_or_signed_by_another(inputs: Properties, tmp_path: Path) -> None:
    outputs = put(tmp_path / "image", inputs)
    state = RESOURCE.read(context(), "local", inputs, outputs)
    assert state is not None
    assert state.outputs == outputs
    foreign = dsse.sign(dsse.IMAGE_MANIFEST, {"version": 1}, ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "image" / "manifest.json").write_text(json.dumps(foreign))
    with pytest.raises(Unhealthy, match="not signed by this environment's key"):
        RESOURCE.read(context(), "local", inputs, outputs)
    (tmp_path / "image" / "disk.img").unlink()
    assert RESOURCE.read(context(), "local", inputs, outputs) is None
    assert RESOURCE.read(context(), "local", inputs, {}) is None


def test_a_key_that_is_not_there_is_one_clear_error(inputs: Properties) -> None:
    with pytest.raises(Failed, match=r"the image could not be built: the image key /nowhere can't be read"):
        RESOURCE.create(context(), {**inputs, "imageKey": "file:/nowhere"})


@pytest.mark.slow
def test_a_cancelled_build_leaves_no_process(inputs: Properties, tmp_path: Path) -> None:
    cancelled = threading.Event()
    said: list[str] = []
    timer = threading.Timer(2.0, cancelled.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Failed) as caught:
        RESOURCE.create(Context("urn", None, progress=said.append, warn=said.append, cancelled=cancelled), inputs)
    assert caught.value.code == "CANCELLED"
    assert time.monotonic() - began < 30
    assert said[0].startswith("building image 1/")
    marker = str(tmp_path / "cache").encode()
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int(entry.name) != os.getpid() and marker in (entry / "environ").read_bytes():
                left.append((entry / "cmdline").read_bytes())
        except OSError:
            continue
    assert left == []
