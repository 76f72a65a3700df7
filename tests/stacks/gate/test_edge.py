# SPDX-License-Identifier: Apache-2.0
"""The edge in front of real machines: who gets through, and when."""

import http.client
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cube_stacks import domain_set, edge, gate, keys, tokens
from cube_stacks.edge import Edge, Member
from cube_stacks.gate import Trust
from cube_stacks.launch import SignedLaunch
from cube_stacks.local.ports import free_ports
from cube_stacks.local.process import ProcessFailure

pytestmark = pytest.mark.slow

DOMAIN = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    # As deep as a state folder may be: a Unix socket's path has 107 bytes only.
    place = tmp_path / ("d" * 60) / "edge"
    place.mkdir(parents=True)
    yield place
    edge.stop(place)


def listen() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


def admit(
    machine: Any, trust: Trust, signed: SignedLaunch, lease: timedelta = timedelta(minutes=5)
) -> gate.Examined:
    examined = gate.examine(machine.management, trust, launch_digest=signed.digest)
    assert examined.passed, examined.refusal()
    gate.admit(examined, machine.management, trust, ["localhost"], lease)
    assert examined.claims is not None
    domains = [
        {
            "id": DOMAIN,
            "name": "acme",
            "models": ["smollm2"],
            "tokens": {"keys": [tokens.token_key(acme()).to_json()], "revoked": []},
        }
    ]
    domain_set.install(machine.management, examined.tls_spki, examined.claims.boot, domains, trust)
    return examined


def acme() -> keys.SigningKey:
    return keys.open_key(keys.domain_key("local", "acme"))


def models(address: str, trust: Trust) -> int:
    """What a client that trusts the environment's CA gets: the status, 0 when the connection ends."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=trust.ca.pem)
    token, _ = tokens.issue(acme(), "local", DOMAIN, ["llm_read"], timedelta(minutes=5), datetime.now(UTC))
    try:
        with socket.create_connection((host, int(port)), 5) as raw:
            secured = context.wrap_socket(raw, server_hostname="localhost")
            link = http.client.HTTPConnection("localhost")
            link.sock = secured
            link.request("GET", f"/{DOMAIN}/v1/models", headers={"Authorization": f"Bearer {token}"})
            return link.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, ssl.SSLCertVerificationError):
            raise
        return 0


def until(happened: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def wanted(address: str, trust: Trust, *machines: Any) -> Edge:
    return Edge(address, tuple(Member(m.service, m.management) for m in machines), trust.ca.pem, "localhost")


def test_only_an_admitted_boot_is_routed_to(machine: Any, trust: Trust, signed: SignedLaunch, folder: Path) -> None:
    address = listen()
    edge.apply(folder, wanted(address, trust, machine))
    time.sleep(2)
    assert edge.healthy(folder) == 0
    assert models(address, trust) == 0  # up and reachable, and not admitted
    examined = admit(machine, trust, signed)
    assert edge.wait_for_member(folder, [], 10, lambda _: None, time.sleep) == ""
    assert models(address, trust) == 200

    assert examined.claims is not None
    gate.revoke(machine.management, trust, examined.claims.boot, examined.tls_spki, "test")
    assert models(address, trust) in (0, 503)  # the machine closes at once, the edge with its next check
    assert until(lambda: models(address, trust) == 0, 5)

    machine.reboot()
    time.sleep(2)
    assert edge.healthy(folder) == 0
    assert models(address, trust) == 0
    admit(machine, trust, signed)
    assert edge.wait_for_member(folder, [], 10, lambda _: None, time.sleep) == ""
    assert models(address, trust) == 200


def test_a_lease_that_runs_out_takes_the_member_out(
    machine: Any, trust: Trust, signed: SignedLaunch, folder: Path
) -> None:
    address = listen()
    edge.apply(folder, wanted(address, trust, machine))
    admit(machine, trust, signed, timedelta(seconds=4))
    assert edge.wait_for_member(folder, [], 4, lambda _: None, time.sleep) == ""
    assert until(lambda: edge.healthy(folder) == 0, 8)
    assert models(address, trust) == 0


def test_a_man_in_the_middle_of_the_health_check_gets_nothing(
    machine: Any, trust: Trust, signed: SignedLaunch, folder: Path, relays: Callable[..., str], tmp_path: Path
) -> None:
    admit(machine, trust, signed)
    address, middle = listen(), relays(machine.management, tmp_path)
    edge.apply(folder, Edge(address, (Member(machine.service, middle),), trust.ca.pem, "localhost"))
    time.sleep(2.5)
    assert edge.healthy(folder) == 0
    assert models(address, trust) == 0


def test_members_change_without_a_new_process(
    machines: Callable[..., Any], trust: Trust, signed: SignedLaunch, folder: Path
) -> None:
    address = listen()
    first, second = machines("m1"), machines("m2")
    for machine in (first, second):
        machine.boot()
    for machine in (first, second):
        machine.wait()
        admit(machine, trust, signed)
    process = edge.apply(folder, wanted(address, trust, first))
    assert until(lambda: edge.healthy(folder) == 1)
    assert edge.apply(folder, wanted(address, trust, first, second)) == process
    assert until(lambda: edge.healthy(folder) == 2)
    assert edge.apply(folder, wanted(address, trust, second)) == process
    assert until(lambda: edge.healthy(folder) == 1)
    first.stop()
    assert models(address, trust) == 200
    moved = listen()
    other = edge.apply(folder, wanted(moved, trust, second))
    assert other != process
    assert not process.alive()
    assert edge.wait_for_member(folder, [], 10, lambda _: None, time.sleep) == ""
    assert models(moved, trust) == 200


def test_a_port_in_use_is_one_clear_line(trust: Trust, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ProcessFailure, match=rf"port {port} of 127.0.0.1 is in use by .*\(pid {os.getpid()}\)"):
            edge.apply(folder, wanted(f"127.0.0.1:{port}", trust))
    assert edge.find(folder) is None


def test_it_stops_and_leaves_nothing(trust: Trust, folder: Path) -> None:
    address = listen()
    process = edge.apply(folder, wanted(address, trust))
    assert edge.find(folder) == process
    assert (folder / "admin.sock").stat().st_mode & 0o077 == 0
    edge.stop(folder)
    assert not process.alive()
    assert edge.find(folder) is None
    assert edge.healthy(folder) == 0
    edge.stop(folder)


def test_a_broken_ca_is_one_line(trust: Trust, folder: Path) -> None:
    with pytest.raises(ProcessFailure, match="the edge did not start"):
        edge.apply(folder, Edge(listen(), (), "no PEM", "localhost"))
    assert edge.find(folder) is None
