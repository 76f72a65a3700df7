# SPDX-License-Identifier: Apache-2.0
"""Debian packages: the host's mirror, exact versions, and what happens when one is gone."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cube_images import build, debian, flavour, lock
from cube_images.errors import ImageError
from cube_images.lock import Package

DEB822 = """Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


def _etc(folder: Path, files: dict[str, str]) -> Path:
    (folder / "apt" / "sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        (folder / "apt" / name).write_text(text)
    return folder


def test_mirror_of_the_host_deb822(tmp_path: Path) -> None:
    etc = _etc(tmp_path, {"sources.list.d/debian.sources": DEB822})
    assert debian.host_sources(etc, {}) == debian.Sources(
        "http://mirror.example/debian", "http://mirror.example/debian-security"
    )


def test_mirror_of_the_host_one_line_format(tmp_path: Path) -> None:
    text = "# deb http://no.example/debian trixie main\ndeb [arch=amd64] http://m.example/debian trixie main\n"
    etc = _etc(tmp_path, {"sources.list": text, "sources.list.d/x.list": "deb http://v.example/apt stable main\n"})
    assert debian.host_sources(etc, {}) == debian.Sources(
        "http://m.example/debian", "http://m.example/debian-security"
    )


def test_environment_names_the_mirror(tmp_path: Path) -> None:
    etc = _etc(tmp_path, {"sources.list.d/debian.sources": DEB822})
    found = debian.host_sources(etc, {"CUBE_DEBIAN_MIRROR": "http://other.example/debian/"})
    assert found == debian.Sources("http://other.example/debian/", "http://other.example/debian-security")


def test_no_mirror_is_one_clear_error(tmp_path: Path) -> None:
    etc = _etc(tmp_path, {"sources.list.d/x.sources": "Types: deb\nURIs: http://u.example\nSuites: noble\n"})
    with pytest.raises(ImageError, match="CUBE_DEBIAN_MIRROR"):
        debian.host_sources(etc, {})


def test_disabled_sources_do_not_count(tmp_path: Path) -> None:
    etc = _etc(tmp_path, {"sources.list.d/debian.sources": "Enabled: no\n" + DEB822.partition("\n\n")[0]})
    with pytest.raises(ImageError):
        debian.host_sources(etc, {})


@contextmanager
def _snapshot(package: Package, content: bytes) -> Iterator[str]:
    """A snapshot archive with one file, speaking the archive's machine interface."""
    index = json.dumps({"result": [{"architecture": package.architecture, "hash": "f00"}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {
                f"/mr/binary/{package.name}/{package.version}/binfiles?fileinfo=1": index,
                "/file/f00": content,
            }.get(self.path)
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def _package(content: bytes, version: str = "1.0") -> Package:
    return Package("thing", version, "amd64", hashlib.sha256(content).hexdigest(), len(content))


def test_snapshot_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = _package(b"deb")
    with _snapshot(package, b"deb") as base:
        assert debian.from_snapshot(package, tmp_path, base)
        assert debian.cached(package).read_bytes() == b"deb"
        assert not debian.from_snapshot(_package(b"deb", "2.0"), tmp_path, base)
    with pytest.raises(OSError, match="refused"):
        debian.from_snapshot(package, tmp_path, base)


def test_snapshot_archive_that_the_host_knows(tmp_path: Path) -> None:
    etc = _etc(
        tmp_path, {"sources.list.d/debian.sources": "# http://old.example/archive/debian/20250520T000000Z\n"}
    )
    assert debian.snapshot_archive({}, etc).startswith("http")
    assert debian.snapshot_archive({"CUBE_DEBIAN_SNAPSHOT": "http://mine.example"}, etc) == "http://mine.example"


def test_another_file_from_the_snapshot_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = _package(b"deb")
    with _snapshot(package, b"other") as base, pytest.raises(ImageError, match="the lock says"):
        debian.from_snapshot(package, tmp_path, base)
    assert not debian.cached(package).exists()


def test_all_cached_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = _package(b"deb")
    debian.cached(package).parent.mkdir(parents=True)
    debian.cached(package).write_bytes(b"deb")

    def never() -> debian.Sources:
        raise AssertionError("asked for the mirror")

    assert debian.fetch([package], "trixie", sources=never) == []


def test_half_a_cached_file_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = _package(b"deb")
    debian.cached(package).parent.mkdir(parents=True)
    debian.cached(package).write_bytes(b"de")

    def asked() -> debian.Sources:
        raise ImageError("asked for the mirror")

    with pytest.raises(ImageError, match="asked"):
        debian.fetch([package], "trixie", sources=asked)


@pytest.mark.slow
def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    closed = debian.Sources("http://127.0.0.1:9/debian", "http://127.0.0.1:9/debian-security")
    with pytest.raises(ImageError) as caught:
        debian.fetch([_package(b"deb")], "trixie", sources=lambda: closed)
    assert "is the Debian mirror reachable?" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_repository_refuses_a_changed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = _package(b"deb")
    debian.cached(package).parent.mkdir(parents=True)
    debian.cached(package).write_bytes(b"bad")
    with pytest.raises(ImageError, match="was damaged"):
        debian.repository([package], "trixie", "0" * 64)
    assert not debian.cached(package).exists()


def _doctored() -> lock.Lock:
    """The lock with one package that no mirror has."""
    locked = lock.load("local")
    busybox = locked.package("busybox-static")
    gone = dataclasses.replace(busybox, version="1:0.0.1-0", sha256="0" * 64)
    return dataclasses.replace(locked, debian={**locked.debian, "parts": (gone,)}, wheels=(), go=())


def _only_parts(locked: lock.Lock) -> lock.Lock:
    return dataclasses.replace(locked, debian={"parts": locked.debian["parts"]})


@pytest.mark.slow
def test_vanished_package_stops_a_strict_flavour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    strict = dataclasses.replace(flavour.load("local"), relock=False)
    said: list[str] = []
    with pytest.raises(ImageError, match=r"neither the cache.*busybox-static=1:0\.0\.1-0"):
        build.ensure_packages(strict, _only_parts(_doctored()), said.append)
    assert said == []


@pytest.mark.slow
def test_vanished_package_locks_local_anew_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    definition = flavour.load("local")
    small = dataclasses.replace(definition, debian={"parts": definition.debian["parts"]}, wheels={})
    monkeypatch.setattr(flavour, "load", lambda name: small)
    said: list[str] = []
    new = build.ensure_packages(small, _only_parts(_doctored()), said.append)
    assert any("locking 'local' anew" in line and "busybox-static=1:0.0.1-0" in line for line in said)
    assert any(line.startswith("changed: busybox-static 1:0.0.1-0 -> ") for line in said)
    assert new.package("busybox-static").version != "1:0.0.1-0"
    assert all(debian.cached(package).is_file() for package in new.packages())
    assert lock.load("local") == new, "the replacement holds on this host"
