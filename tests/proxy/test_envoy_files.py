# SPDX-License-Identifier: Apache-2.0
"""Files that Envoy watches, and what happens when Envoy does not follow."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cube_proxy import envoy
from cube_proxy.envoy_files import ROUTES_FILE, TOKEN_FILE, EnvoyFiles, NotInForce


def test_a_file_is_replaced_only_when_its_content_changes(tmp_path: Path) -> None:
    files = EnvoyFiles(tmp_path, tmp_path / "none", os.getgid())
    files.write(ROUTES_FILE, {"resources": []})
    path = tmp_path / ROUTES_FILE
    first = path.stat()
    assert first.st_mode & 0o777 == 0o640
    assert set(json.loads(path.read_text())) == {"version_info", "resources"}
    files.write(ROUTES_FILE, {"resources": []})
    assert path.stat().st_ino == first.st_ino
    files.write(ROUTES_FILE, {"resources": [1]})
    assert path.stat().st_ino != first.st_ino
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_prepared_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "rds").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "rds/.service.json.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        EnvoyFiles(tmp_path, tmp_path / "none", os.getgid()).write(ROUTES_FILE, {"resources": []})
    assert victim.read_text() == "untouched"


def test_without_envoy_nothing_is_in_force(tmp_path: Path) -> None:
    files = EnvoyFiles(tmp_path, tmp_path / "none", os.getgid())
    files.write(ROUTES_FILE, {"resources": []})
    with pytest.raises(NotInForce, match="within 0 s"):
        asyncio.run(files.in_force(0.1))


def test_a_configuration_that_envoy_refuses_is_noticed_and_the_old_one_stays(
    envoy_process: Any, backend: Any, make_tenant: Callable[..., Any], make_set: Callable[..., Any]
) -> None:
    acme = make_tenant("acme", ("smollm2",))
    envoy_process.apply(make_set(acme))
    good = json.loads((envoy_process.run / "envoy" / ROUTES_FILE).read_text())
    envoy_process.files.write(ROUTES_FILE, {"resources": [{"@type": "nonsense"}]})
    with pytest.raises(NotInForce):
        asyncio.run(envoy_process.files.in_force(0.5))
    assert envoy_process.request("GET", f"/{acme.id}/v1/models", acme.token()).status == 200
    del good["version_info"]
    envoy_process.files.write(ROUTES_FILE, good)
    asyncio.run(envoy_process.files.in_force())


def test_a_view_that_changes_back_is_written_again(envoy_process: Any, make_set: Callable[..., Any]) -> None:
    envoy_process.apply(make_set())
    envoy_process.apply(None)
    text = (envoy_process.run / "envoy" / ROUTES_FILE).read_text()
    assert envoy.NOT_ADMITTED in text
    assert (envoy_process.run / "envoy" / TOKEN_FILE).exists()
