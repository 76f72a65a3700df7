# SPDX-License-Identifier: Apache-2.0
"""A machine made of real processes: swtpm of the environment's TPM CA, agent, Envoy. Only the boot is played."""

import contextlib
import grp
import hashlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cube_attestation import client, dsse, jcs, launch
from cube_attestation import policy as policies
from cube_attestation.errors import Unreachable
from cube_attestation.launch import Model
from cube_stacks import keys
from cube_stacks.ca import TpmManufacturer, environment_ca, tpm_manufacturer
from cube_stacks.gate import Trust
from cube_stacks.launch import SignedLaunch, sign
from cube_stacks.local import swtpm
from cube_stacks.local.machine import LocalMachine
from cube_stacks.local.ports import free_ports
from cube_stacks.local.process import Process, start_detached
from cube_stacks.policy_resolve import Anchors, resolve
from cube_templates import render

ENVIRONMENT = "local"
EVENTS = [
    (2, 0x4, "separator"),
    (4, 0x80000003, "the UKI"),
    (5, 0x80000006, "partition table"),
    (7, 0x80000001, "SecureBoot"),
    (9, 0xD, "kernel command line"),
    (11, 0xD, ".linux"),
    (11, 0xD, ".cmdline"),
]
MODEL = Model("ollama", "ab" * 32, 4096, 8192, "vol-ab", "model.gguf")
SOURCE_POLICY = b"""
version = 1
environment = "local"
lowest_tier = "software"
[image]
[launch]
minimum_revision = 3
[tpm]
pcrs = [2, 4, 5, 7, 8, 9, 11]
"""


def digest_of(what: str) -> bytes:
    return hashlib.sha256(what.encode()).digest()


def firmware_log(events: list[tuple[int, int, str]]) -> bytes:
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 1) + struct.pack("<HH", 0xB, 32) + b"\0"
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    for pcr, kind, what in events:
        data = what.encode()
        log += struct.pack("<IIIH", pcr, kind, 1, 0xB) + digest_of(what) + struct.pack("<I", len(data)) + data
    return log


def manifest(events: list[tuple[int, int, str]], key: keys.SigningKey) -> bytes:
    pcrs: dict[int, bytes] = {}
    for pcr, _, what in events:
        pcrs[pcr] = hashlib.sha256(pcrs.get(pcr, bytes(32)) + digest_of(what)).digest()
    some = "sha256:" + "11" * 32
    payload = {
        "version": 1, "flavour": "local", "id": "cube-test", "image": some, "uki": some, "uki_authenticode": some,
        "root": "22" * 32, "lock": some, "definition": some, "firmware": {"code": some, "vars": some},
        "packages": [], "binaries": [], "recorded": {"pcrs": {}, "from": "nothing"},
        "reference": {
            "pcrs": {"sha256": {str(pcr): value.hex() for pcr, value in pcrs.items()}},
            "events": [
                {"pcr": pcr, "sha256": digest_of(what).hex(), "type": "EV_IPL", "what": what, "from": "the test"}
                for pcr, _, what in events
            ],
        },
    }  # fmt: skip
    return jcs.dumps(dsse.sign(dsse.IMAGE_MANIFEST, payload, key))


@dataclass
class HostMachine:
    """Booted and rebooted as often as wanted; what it boots is changed by its fields."""

    folder: Path
    maker: TpmManufacturer
    envelope: object
    events: list[tuple[int, int, str]] = field(default_factory=lambda: list(EVENTS))
    ports: tuple[int, int] = (0, 0)
    instance: str = "m-1"
    processes: list[Process] = field(default_factory=list)

    @property
    def management(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def service(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    def boot(self) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "tpm").exists():
            swtpm.manufacture(folder / "tpm", self.maker, "host")
        if self.ports == (0, 0):
            first, second = free_ports(2)
            self.ports = (first, second)
        tpm = free_tpm_port()
        (folder / "launch.img").write_bytes(launch.write_volume(self.envelope))
        (folder / "firmware.log").write_bytes(firmware_log(self.events))
        (folder / "systemd.log").write_bytes(b"")
        (folder / "os-release").write_text("IMAGE_ID=cube\nIMAGE_VERSION=test\n")
        told = {
            "tcti": f"swtpm:host=127.0.0.1,port={tpm}",
            "group": grp.getgrgid(os.getgid()).gr_name,
            "events": [[pcr, digest_of(what).hex()] for pcr, _, what in self.events],
        }
        (folder / "host.json").write_text(json.dumps(told))
        for part in ("sds", "rds", "ecds"):
            (folder / "run" / "envoy" / part).mkdir(parents=True, exist_ok=True)
            for stale in (folder / "run" / "envoy" / part).iterdir():
                stale.unlink()
        (folder / "run" / "agent.sock").unlink(missing_ok=True)
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder / 'tpm'}"]
        command += ["--server", f"type=tcp,port={tpm}", "--ctrl", f"type=tcp,port={tpm + 1}"]
        command += ["--flags", "not-need-init,startup-clear"]
        self.processes.append(start_detached(command, folder / "swtpm.log"))
        wait_until(lambda: taken(tpm), "swtpm to listen")
        agent = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("host_agent.py")), str(folder)]
        self.processes.append(start_detached(agent, folder / "agent.log"))
        wait_until((folder / "run" / "envoy" / "sds" / "tls.json").exists, "the agent to write Envoy's files")
        wait_until((folder / "run" / "audit.pipe").exists, "the agent to make its pipe")
        values = {
            "run": str(folder / "run"),
            "backend_socket": str(folder / "backend.sock"),
            "admin_socket": str(folder / "admin.sock"),
            "address": "127.0.0.1",
            "service_port": self.ports[0],
            "management_port": self.ports[1],
            "log_path": str(folder / "access.log"),
        }
        (folder / "envoy.json").write_text(render("envoy/bootstrap.json", values))
        envoy = [str(Path(sys.executable).with_name("envoy")), "-c", str(folder / "envoy.json")]
        envoy += ["--disable-hot-restart", "--concurrency", "1", "-l", "warn"]
        # as the service manager does: the agent's pipe, open for reading too, is its standard output
        piped = ["sh", "-c", 'exec "$@" 1<>"$0"', str(folder / "run" / "audit.pipe"), *envoy]
        self.processes.append(start_detached(piped, folder / "envoy.log"))
        tpm_process, agent_process, _ = self.processes
        # The record of a machine of this host: the agent stands for QEMU.
        LocalMachine(
            "m", self.instance, folder, "tcg", self.ports[0], self.ports[1], tpm_process, agent_process
        ).save()

    def wait(self, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                client.ready(self.management, timeout=1)
            except Unreachable:
                if time.monotonic() > end:
                    logs = "\n".join((self.folder / f"{n}.log").read_text() for n in ("agent", "envoy", "swtpm"))
                    raise AssertionError(f"the machine did not come up:\n{logs[-3000:]}") from None
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()
        self.processes.clear()

    def reboot(self) -> None:
        self.stop()
        self.boot()
        self.wait()


def free_tpm_port() -> int:
    """A port whose successor is free too: the TCTI takes it as the control port."""
    while True:
        (port,) = free_ports(1)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + 1))
            return port


def taken(port: int) -> bool:
    # Connecting to swtpm's port would use its one connection up: look whether it is taken instead.
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def wait_until(happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not happened():
        if time.monotonic() > end:
            raise AssertionError(f"waited for {what}")
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def control() -> keys.SigningKey:
    return keys.open_key(keys.environment_key(ENVIRONMENT, "control"))


@pytest.fixture
def signed(control: keys.SigningKey) -> SignedLaunch:
    models = {"smollm2": MODEL, "assistant": MODEL}
    return sign(ENVIRONMENT, 3, ["localhost"], models, {"max_body_bytes": 1 << 20}, control)


@pytest.fixture
def machines(tmp_path: Path, signed: SignedLaunch) -> Iterator[Callable[..., HostMachine]]:
    pytest.importorskip("tpm2_pytss", reason="the agent needs it: `make test` builds it")
    made: list[HostMachine] = []

    def make(name: str = "m", maker: TpmManufacturer | None = None) -> HostMachine:
        own = maker or tpm_manufacturer(ENVIRONMENT, datetime.now(UTC))
        made.append(HostMachine(tmp_path / name, own, signed.envelope))
        return made[-1]

    yield make
    for machine in made:
        machine.stop()


@pytest.fixture
def machine(machines: Callable[..., HostMachine]) -> HostMachine:
    found = machines()
    found.boot()
    found.wait()
    return found


@pytest.fixture
def trust(control: keys.SigningKey) -> Trust:
    now = datetime.now(UTC)
    image = keys.open_key(keys.environment_key(ENVIRONMENT, "image"))
    ca = environment_ca(ENVIRONMENT, keys.open_key(keys.environment_key(ENVIRONMENT, "ca")), now)
    maker = tpm_manufacturer(ENVIRONMENT, now)
    anchors = Anchors(image.keyid, control.keyid, maker.root_spki, ca.key.keyid, control.keyid)
    policy = policies.load(resolve(SOURCE_POLICY, anchors, ENVIRONMENT, "software"))
    return Trust(ENVIRONMENT, policy, manifest(EVENTS, image), tuple(maker.chain()), ca, control)


@pytest.fixture
def relays() -> Iterator[Callable[..., str]]:
    """Starts relays that end TLS themselves: `relays(address)` → address of the man in the middle."""
    made: list[Process] = []

    def start(target: str, folder: Path) -> str:
        (port,) = free_ports(1)
        command = [sys.executable, str(Path(__file__).with_name("relay.py")), str(port), target, str(folder)]
        made.append(start_detached(command, folder / f"relay-{port}.log"))
        wait_until(lambda: taken(port), "the relay to listen")
        return f"127.0.0.1:{port}"

    yield start
    for process in made:
        process.stop()
