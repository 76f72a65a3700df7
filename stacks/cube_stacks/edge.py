# SPDX-License-Identifier: Apache-2.0
"""The local edge: Envoy at layer 4, which never sees inside TLS, routing to the members that say they are ready.

Readiness is asked over TLS of the environment's CA and the machine's hostname: only an admitted boot has such a
certificate, and it answers 200 only under a valid lease. A machine that is not ready gets no connection, and loses
those it has.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cube_attestation import client
from cube_attestation.client import split
from cube_attestation.errors import AttestationError, BadInput

from cube_stacks.local import ports
from cube_stacks.local.console import clean, tail
from cube_stacks.local.process import Process, ProcessFailure, start_detached
from cube_stacks.state import read_record, write_atomically, write_record

CHECK_S = 1
READY_S = 300.0  # an emulated machine takes its time to read a model for the first time
_SAY_S = 1.5
# Envoy watches the folder of the members' file: nothing else may be written there, or it is kept busy.
_CONFIGURATION, _MEMBERS, _ADMIN = "envoy.json", "eds/members.json", "admin.sock"
_RECORD, _LOG = "process.json", "envoy.log"
_CLUSTER, _PROXY = "members", "envoy.filters.network.tcp_proxy"
_TLS = "TLSv1_3"
_TYPES = "type.googleapis.com/envoy."


@dataclass(frozen=True)
class Member:
    """A machine: where inference goes, and where readiness is asked."""

    service: str
    management: str


@dataclass(frozen=True)
class Edge:
    """What to run: where to listen (host:port), whom to trust (PEM), the name in the members' certificates."""

    listen: str
    members: tuple[Member, ...]
    ca: str
    hostname: str


def bootstrap(edge: Edge) -> dict[str, Any]:
    """Envoy's configuration; relative paths are relative to the edge's folder, its working directory."""
    host, port = split(edge.listen)
    check_tls = {
        "@type": _TYPES + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": edge.hostname,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": _TLS, "tls_maximum_protocol_version": _TLS},
            "alpn_protocols": ["http/1.1"],
            "validation_context": {
                "trusted_ca": {"inline_string": edge.ca},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": edge.hostname}}],
            },
        },
    }
    check = {
        "timeout": "3s",
        "interval": f"{CHECK_S}s",
        "no_traffic_interval": f"{CHECK_S}s",
        "no_traffic_healthy_interval": f"{CHECK_S}s",
        "unhealthy_threshold": 1,
        "healthy_threshold": 1,
        "http_health_check": {"host": edge.hostname, "path": "/ready"},
        "transport_socket_match_criteria": {"check": "yes"},
    }
    cluster = {
        "name": _CLUSTER,
        "type": "EDS",
        "connect_timeout": "3s",
        "eds_cluster_config": {
            "eds_config": {"path_config_source": {"path": _MEMBERS}, "resource_api_version": "V3"},
        },
        "lb_policy": "LEAST_REQUEST",
        # With nobody ready nobody gets anything: never "better somebody than none".
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "close_connections_on_host_health_failure": True,
        "ignore_health_on_host_removal": True,
        "health_checks": [check],
        "transport_socket_matches": [
            {
                "name": "check",
                "match": {"check": "yes"},
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": check_tls},
            },
        ],
    }
    proxy = {
        "@type": _TYPES + "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "edge",
        "cluster": _CLUSTER,
        "idle_timeout": "3600s",
    }
    return {
        "node": {"id": "edge", "cluster": "edge"},
        "admin": {"address": {"pipe": {"path": _ADMIN, "mode": 0o600}}},
        "static_resources": {
            "listeners": [
                {
                    "name": "edge",
                    "address": {"socket_address": {"address": host, "port_value": port}},
                    "filter_chains": [
                        {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
                    ],
                }
            ],
            "clusters": [cluster],
        },
    }


def endpoints(members: Sequence[Member]) -> dict[str, Any]:
    """The members as Envoy's endpoint discovery file."""
    found = []
    for member in members:
        service, management = split(member.service), split(member.management)
        found.append(
            {
                "endpoint": {
                    "address": {"socket_address": {"address": service[0], "port_value": service[1]}},
                    "health_check_config": {
                        "address": {"socket_address": {"address": management[0], "port_value": management[1]}},
                    },
                }
            }
        )
    assignment = {
        "@type": _TYPES + "config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": _CLUSTER,
        "endpoints": [{"lb_endpoints": found}],
    }
    return {"resources": [assignment]}


def apply(folder: Path, edge: Edge) -> Process:
    """Make the edge in `folder` be `edge`: new members go to the running process, all else starts a new one.

    Raises ProcessFailure: the port is in use, Envoy is missing or does not start.
    """
    configuration = json.dumps(bootstrap(edge), indent=1, sort_keys=True).encode()
    running = find(folder)
    same = running is not None and _read(folder / _CONFIGURATION) == configuration
    write_atomically(folder / _MEMBERS, json.dumps(endpoints(edge.members)).encode())
    if running is not None and same:
        return running
    if running is not None:
        running.stop()
    host, port = split(edge.listen)
    if ports.in_use(host, port):
        who = ports.holder(port) or "another program"
        raise ProcessFailure(
            f"port {port} of {host} is in use by {who}; stop it, or set another one with "
            f"cube:edge: {{listen: {host}:<port>}}"
        )
    write_atomically(folder / _CONFIGURATION, configuration)
    (folder / _ADMIN).unlink(missing_ok=True)
    (folder / _LOG).unlink(missing_ok=True)
    command = [_envoy(), "-c", _CONFIGURATION, "--disable-hot-restart", "--concurrency", "1", "-l", "warn"]
    process = start_detached(command, folder / _LOG, cwd=folder)
    write_record(folder / _RECORD, process.to_json())
    end = time.monotonic() + 10
    while not ports.in_use(host, port) or not (folder / _ADMIN).exists():
        if not process.alive() or time.monotonic() > end:
            process.stop()
            said = [line for line in tail(folder / _LOG).splitlines() if "critical" in line or "error" in line]
            raise ProcessFailure(f"the edge did not start: {clean(said[-1]) if said else 'see'} {folder / _LOG}")
        time.sleep(0.02)
    return process


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _envoy() -> str:
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.exists() else shutil.which("envoy")
    if found is None:
        raise ProcessFailure("envoy is not installed; run: make venv")
    return found


def find(folder: Path) -> Process | None:
    """The edge's process if it runs."""
    process = Process.from_json(read_record(folder / _RECORD))
    return process if process is not None and process.alive() else None


def stop(folder: Path) -> None:
    """End the edge of `folder`; no error if none runs."""
    process = find(folder)
    if process is not None:
        process.stop()
    (folder / _RECORD).unlink(missing_ok=True)


def healthy(folder: Path) -> int:
    """How many members are ready, as the running edge sees it; 0 when it can't be asked."""
    name = f"cluster.{_CLUSTER}.membership_healthy"
    try:
        answer = _ask(folder, f"/stats?filter=^{name}$").decode()
    except (OSError, ValueError):
        return 0
    found, _, value = answer.strip().partition(": ")
    return int(value) if found == name and value.isdigit() else 0


def _ask(folder: Path, path: str) -> bytes:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(2)
            link.connect(f"/proc/self/fd/{descriptor}/{_ADMIN}")
            link.sendall(f"GET {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while chunk := link.recv(65536):
                answer += chunk
    finally:
        os.close(descriptor)
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = _unchunk(body)
    return body


def _unchunk(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        found, body = found + rest[:length], rest[length + 2 :]
        if not length:
            break
    return found


def wait_for_member(
    folder: Path,
    members: Sequence[Member],
    seconds: float,
    progress: Callable[[str], None],
    pause: Callable[[float], None],
) -> str:
    """Wait until a member is ready; says every 1.5 s why none is. Empty when one is, else the last reason.

    `pause` sleeps, and may raise to end the wait.
    """
    began = said = time.monotonic()
    while not healthy(folder):
        now = time.monotonic()
        if now - said > _SAY_S or now - began > seconds:
            why, said = _why_not_ready(members), now
            if now - began > seconds:
                return why
            progress(f"waiting for a member: {why}")
        pause(0.2)
    return ""


def _why_not_ready(members: Sequence[Member]) -> str:
    return "; ".join(sorted({_reasons(member) for member in members})) or "there are no members"


def _reasons(member: Member) -> str:
    try:
        ready, reasons = client.ready(member.management, timeout=2)
    except AttestationError as error:
        return f"{member.management}: {error.what}"
    return "ready" if ready else ", ".join(reasons)


def check_address(address: str) -> str | None:
    """What is wrong with an address `host:port`, or None."""
    try:
        split(address)
    except BadInput as error:
        return str(error)
    return None
