# SPDX-License-Identifier: Apache-2.0
"""``attestation connect`` as users run it: a process, unmodified clients, signals, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cube_attestation import bundle as bundles
from cube_attestation.cli import main
from fakeguest import Guest, read_request, response
from fakepki import World, cmdline_changed

pytestmark = pytest.mark.slow  # real servers, and waiting for their time limits

# The fake PKI's certificates are of one day: the command runs on that day's clock.
ON_THAT_DAY = (
    "import sys; from datetime import datetime, UTC; from cube_attestation import live;"
    "live.utc_now = lambda: datetime(2026, 11, 24, 12, tzinfo=UTC);"
    "from cube_attestation.cli import main; sys.exit(main(sys.argv[1:]))"
)
CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def serve(connection: ssl.SSLSocket) -> None:
    """A service port that streams chat completions and lists models."""
    while True:
        head, _ = read_request(connection)
        if not head:
            return
        if b"/chat/completions" not in head:
            connection.sendall(response(b'{"object":"list","data":[{"id":"m","object":"model"}]}'))
            continue
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for word in ("Paris", " is", " it", None):
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            event = json.dumps({**CHUNK, "choices": [choice]}) if word else "[DONE]"
            data = f"data: {event}\n\n".encode()
            connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        connection.sendall(b"0\r\n\r\n")


def arguments(folder: Path, machine: Guest, *more: str) -> list[str]:
    (folder / "policy.toml").write_text(machine.world.policy_toml())
    (folder / "known.json").write_bytes(bundles.dump(machine.known()))
    given = [f"https://{machine.service}", "--evidence", f"https://{machine.management}", "--listen", "127.0.0.1:0"]
    files = ["--policy", str(folder / "policy.toml"), "--endorsements", str(folder / "known.json")]
    return ["connect", *given, *files, *more]


def command(*given: str) -> list[str]:
    return [sys.executable, "-c", ON_THAT_DAY, *given]


class Running:
    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self._log = process, log

    def told(self) -> str:
        return self._log.read_text()

    def address(self) -> str:
        end = time.monotonic() + 30
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(r"listening on (http://\S+)", self.told()):
                return found.group(1)
            time.sleep(0.02)
        raise AssertionError(self.told())

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@contextlib.contextmanager
def connecting(folder: Path, machine: Guest, *more: str) -> Iterator[Running]:
    log = folder / "connect.log"
    with log.open("w") as file:
        process = subprocess.Popen(command(*arguments(folder, machine, *more)), stderr=file, stdout=file, text=True)
    try:
        yield Running(process, log)
    finally:
        process.kill()
        process.wait()


def test_unmodified_clients_and_a_polite_end(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    with Guest(serve).running() as machine, connecting(tmp_path, machine) as running:
        address = running.address()
        with openai.OpenAI(
            base_url=f"{address}/acme/v1", api_key="pat_secret", max_retries=0, timeout=20
        ) as client:
            assert [model.id for model in client.models.list()] == ["m"]
            messages = [{"role": "user", "content": "What is the capital of France?"}]
            answer = client.chat.completions.create(model="m", messages=messages, stream=True)
            assert "".join(part.choices[0].delta.content for part in answer) == "Paris is it"
        if curl := shutil.which("curl"):
            done = subprocess.run(
                [curl, "-sS", "--noproxy", "*", f"{address}/acme/v1/models"],
                capture_output=True,
                timeout=20,
                check=True,
            )
            assert json.loads(done.stdout)["data"][0]["id"] == "m"
        assert machine.attested == 1
        assert running.end(signal.SIGTERM) == 0
        told = running.told()
    assert "tier software" in told
    assert not re.search("acme|secret|capital|Paris", told), "nothing of a request or an answer is told"
    assert all(line.startswith("attestation: ") for line in told.splitlines())


def test_an_interrupt_ends_it_and_a_second_one_does_not_wait(tmp_path: Path) -> None:
    def stall(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        time.sleep(8)

    with Guest(stall).running() as machine, connecting(tmp_path, machine) as running:
        host, _, port = running.address().removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            time.sleep(0.3)
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert running.process.poll() is None, "an answer is under way"
            assert running.end(signal.SIGINT) == 0
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_a_refused_machine_is_told_in_the_openai_clients_own_error(tmp_path: Path) -> None:
    """It passed at first; then the guest rebooted into something else."""
    openai = pytest.importorskip("openai")
    with Guest(serve).running() as machine, connecting(tmp_path, machine) as running:
        address = running.address()
        machine.role, machine.world.boot = "tls of another boot", cmdline_changed()
        client = openai.OpenAI(base_url=f"{address}/acme/v1", api_key="pat_secret", timeout=20)
        with client, pytest.raises(openai.InternalServerError) as caught:
            client.models.list()
        assert caught.value.status_code == 502
        assert caught.value.code == "tpm.pcr.mismatch"
        assert "refused: tpm.pcr.mismatch" in running.told()


@pytest.mark.parametrize(
    ("world", "code", "words"),
    [
        ({"boot": cmdline_changed()}, 1, "refused: tpm.pcr.mismatch"),
        ({"ak_key": "another"}, 2, "tpm.ak.key_mismatch"),
    ],
)
def test_it_does_not_listen_when_no_machine_passes(
    tmp_path: Path, world: dict[str, object], code: int, words: str
) -> None:
    with Guest(serve, world=World(**world)).running() as machine:  # type: ignore[arg-type]
        given = command(*arguments(tmp_path, machine))
        done = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.endswith("no machine passed: not listening\n")
    assert "Traceback" not in done.stderr


def test_no_machine_can_be_reached(tmp_path: Path) -> None:
    with Guest(serve).running() as machine:
        given = arguments(tmp_path, machine)
    done = subprocess.run(command(*given), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    assert f"https://{machine.service}: no use: connect.unreachable: " in done.stderr


BAD = {
    "other computers": (["--listen", "0.0.0.0:9000"], "--allow-remote"),
    "other computers, IPv6": (["--listen", "[::]:9000"], "--allow-remote"),
    "a name": (["--listen", "example:9000"], "127.0.0.1:9000"),
    "no port": (["--listen", "127.0.0.1:70000"], "no port"),
    "a re-check of no time": (["--recheck", "0"], "--recheck"),
    "not a number of seconds": (["--timeout", "nan"], "--timeout"),
    "no connections": (["--max-connections", "0"], "--max-connections"),
    "an evidence address that is none": (["--evidence", "http://x"], "https://"),
    "a bundle that is not there": (["--evidence", "nowhere.json"], "nowhere.json: can't be read"),
    "a bundle's age that is none": (["--max-age", "0"], "--max-age"),
    "a bundle that is none": (["--endorsements", "policy.toml"], "policy.toml"),
}


@pytest.mark.parametrize(("more", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(
    more: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text(World().policy_toml())
    assert main(["connect", "https://127.0.0.1:1", "--policy", "policy.toml", *more]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with Guest(serve).running() as machine, socket.create_server(("127.0.0.1", 0)) as other:
        given = arguments(tmp_path, machine, "--listen", f"127.0.0.1:{other.getsockname()[1]}")
        done = subprocess.run(command(*given), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "can't listen" in done.stderr
    assert machine.attested == 0


def test_help_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["connect", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "attestation connect https://llm.example:8443 --policy policy.toml" in text
    assert "OPENAI_BASE_URL=http://127.0.0.1:9000/acme/v1" in text
    assert os.linesep in text
