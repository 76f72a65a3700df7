# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import gobuild
import peers
import pytest
from cube_images.errors import ImageError

QUIET: list[str] = []


def module(folder: Path, text: str = "package main\n\nfunc main() {}\n") -> gobuild.Program:
    folder.mkdir()
    (folder / "go.mod").write_text("module example.test/tiny\n\ngo 1.25\n")
    (folder / "go.sum").write_text("")
    (folder / "main.go").write_text(text)
    return gobuild.Program("tiny", "a tiny program", folder, ".", "a second", 1)


def test_the_key_changes_with_all_that_a_program_is_made_of(tmp_path: Path) -> None:
    program = module(tmp_path / "one")
    keys = {program.digest(), replace(program, tags="x").digest(), replace(program, ldflags="x").digest()}
    for name in ("go.mod", "go.sum", "main.go"):
        (program.module / name).write_text((program.module / name).read_text() + "\n")
        keys.add(program.digest())
    (program.module / "more.go").write_text("package main\n")
    assert len(keys | {program.digest()}) == 7


@pytest.mark.slow
def test_a_program_is_built_once_and_mended_when_it_is_gone(tmp_path: Path) -> None:
    program, home, said = module(tmp_path / "one"), tmp_path / "kept", list[str]()
    for _ in range(2):
        folder = gobuild.whole(home, ["tiny"], lambda into: program.build(into, said.append), said.append)
    assert said == ["building a tiny program from its Go modules; a second, once"]
    (folder / "tiny").unlink()
    gobuild.whole(home, ["tiny"], lambda into: program.build(into, said.append), said.append)
    assert said[1] == f"{home} is not whole; building it anew"
    subprocess.run([folder / "tiny"], check=True)


@pytest.mark.slow
def test_what_does_not_compile_leaves_nothing(tmp_path: Path) -> None:
    program = module(tmp_path / "one", "package main\n\nfunc main() { missing() }\n")
    with pytest.raises(ImageError, match="go failed"):
        gobuild.whole(tmp_path / "kept", ["tiny"], lambda into: program.build(into, QUIET.append), QUIET.append)
    assert not (tmp_path / "kept").exists()


def test_without_a_version_of_go_the_file_is_named(tmp_path: Path) -> None:
    program = module(tmp_path / "one")
    (program.module / "go.mod").write_text("module example.test/tiny\n")
    with pytest.raises(ImageError, match=r"go\.mod names no Go version"):
        program.build(tmp_path, QUIET.append)


def ask(*arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    program = peers.built()
    if program is None:
        pytest.skip("peers is not built: python tools/peers.py build")
    return subprocess.run([program, *arguments], input=lines, capture_output=True, text=True, timeout=60)


def test_peers_says_how_it_is_used() -> None:
    for wrong in ((), ("check",), ("bench",), ("bench", "soon"), ("bench", "0"), ("bench", "999")):
        done = ask(*wrong)
        assert (done.returncode, done.stdout) == (1, ""), wrong
        assert done.stderr.startswith("peers: ")


def test_peers_answers_each_line_and_names_one_that_is_none() -> None:
    kinds = [{"kind": "snp"}, {"kind": "tdx"}, {"kind": "sgx"}]
    done = ask("verify", lines="\n".join(map(json.dumps, kinds)))
    assert [json.loads(line)["accepted"] for line in done.stdout.splitlines()] == [False] * 3
    assert "line 2" in ask("verify", lines='{"kind": "snp"}\n{').stderr


def test_peers_is_pinned() -> None:
    text = (peers.PROGRAM.module / "go.mod").read_text()
    sums = (peers.PROGRAM.module / "go.sum").read_text()
    for name in ("go-sev-guest", "go-tdx-guest"):
        version = text.partition(f"google/{name} ")[2].split()[0]
        assert f"github.com/google/{name} {version} h1:" in sums
