# SPDX-License-Identifier: Apache-2.0
"""The language host as a process, spoken to as the engine does. Real programs run in stacks/test_engine.py."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime.proto import language_pb2, language_pb2_grpc

HOST = Path(__file__).resolve().parents[2] / "tools" / "language_host.py"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, HOST, "-v=3", "--logtostderr", "127.0.0.1:1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield started
    started.kill()
    started.communicate()


@pytest.fixture
def stub(process: subprocess.Popen[str]) -> Iterator[Any]:
    assert process.stdout is not None
    with grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}") as channel:
        yield language_pb2_grpc.LanguageRuntimeStub(channel)


def info(**options: str) -> Any:
    return language_pb2.ProgramInfo(
        root_directory="/nowhere",
        program_directory="/nowhere",
        entry_point=".",
        options=json_format.ParseDict(options, struct_pb2.Struct()),
    )


def test_it_introduces_itself(stub: Any) -> None:
    stub.Handshake(language_pb2.LanguageHandshakeRequest(engine_address="127.0.0.1:2"), timeout=10)
    assert stub.GetPluginInfo(empty_pb2.Empty()).version == "3.259.0"
    assert list(stub.RuntimeOptionsPrompts(language_pb2.RuntimeOptionsRequest()).prompts) == []


def test_it_tells_about_the_interpreter_and_its_packages(stub: Any) -> None:
    about = stub.About(language_pb2.AboutRequest(info=info()), timeout=20)
    assert about.executable == sys.executable
    assert about.version == sys.version.split()[0]
    found = stub.GetProgramDependencies(language_pb2.GetProgramDependenciesRequest(info=info()), timeout=20)
    assert ("pulumi", "3.259.0") in [(entry.name, entry.version) for entry in found.dependencies]
    needed = stub.GetRequiredPackages(language_pb2.GetRequiredPackagesRequest(info=info()), timeout=20)
    assert [entry.name for entry in needed.packages if entry.kind != "resource"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"virtualenv": "venv"}, "/nowhere/venv/bin/python is not there"),
        ({"toolchain": "poetry"}, "toolchain: poetry"),
    ],
)
def test_settings_that_it_cant_serve_are_named(stub: Any, options: dict[str, str], words: str) -> None:
    answer = stub.Run(language_pb2.RunRequest(project="p", stack="s", pwd="/", info=info(**options)), timeout=20)
    assert words in answer.error
    assert not answer.bail
    with pytest.raises(grpc.RpcError) as caught:
        stub.About(language_pb2.AboutRequest(info=info(**options)), timeout=20)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert words in caught.value.details()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_quietly(process: subprocess.Popen[str], stub: Any, number: signal.Signals) -> None:
    stub.GetPluginInfo(empty_pb2.Empty(), timeout=10)
    process.send_signal(number)
    output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (0, "", "")


def test_without_an_engine_it_says_how_it_is_used() -> None:
    done = subprocess.run([sys.executable, HOST], capture_output=True, text=True, timeout=20)
    assert done.returncode == 64
    assert "usage:" in done.stderr
