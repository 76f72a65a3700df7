# SPDX-License-Identifier: Apache-2.0
"""Cache entries are whole or absent."""

import threading
from pathlib import Path

import pytest
from cube_images import paths
from cube_images.errors import ImageError


def test_relative_xdg_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert paths.cache_dir() == Path.home() / ".cache" / "cube-confidential"


def test_entry_is_made_once(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("x")

    for _ in range(2):
        assert (paths.entry(tmp_path / "a", make) / "file").read_text() == "x"
    assert len(calls) == 1


def test_failed_entry_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paths.entry(tmp_path / "a", make)
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.tmp-old").mkdir()
    (tmp_path / ".a.tmp-old" / "half").write_text("x")
    paths.entry(tmp_path / "a", lambda folder: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.lock", "a"]


def test_two_at_once_work_once(tmp_path: Path) -> None:
    made: list[Path] = []
    gate = threading.Barrier(2)

    def work() -> None:
        gate.wait()
        paths.entry(tmp_path / "a", made.append)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_too_small_a_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"the image needs 1000000000\.0 GB .* are free"):
        paths.require_space(tmp_path, 10**18, "the image")
