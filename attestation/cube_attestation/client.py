# SPDX-License-Identifier: Apache-2.0
"""The management port's client (formats §2): TLS 1.3 whose key is reported, not trusted.

No CA is asked: who is at the other end is what the evidence says. Each call reports or demands the SPKI digest of
the key that ended *the very connection that carried the request*. Every call has one overall time limit.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from . import control, jcs
from .claims import NONCE_BYTES
from .cmw import Collection
from .errors import BadInput, KeyMismatch, Unreachable
from .fields import Fields
from .tpm.credential import Challenge
from .x509 import certificate as x509

MAX_ANSWER = 64 << 20
MAX_ADDRESS = 300  # a host name has 253 at most
DEFAULT_PORT = 8444
_RETRIED = (429, 502, 503, 504)
_RIGHT_PORT = f"is this the machine's management port (usually {DEFAULT_PORT})?"

# Opens a TCP connection to (host, port) within the given seconds; the default is a direct one.
Dial = Callable[[tuple[str, int], float], socket.socket]


@dataclass(frozen=True)
class Fetched:
    """Evidence, and the TLS key (SPKI digest) and certificate (DER) of the connection that it came over."""

    evidence: Collection
    tls_spki: str
    certificate: bytes


@dataclass(frozen=True)
class MachineState:
    """What ``GET /control/v1/state`` says: good for building the next message, not a statement to rely on."""

    boot: str
    environment: str
    tls_spki: str
    generation: int
    lease: str
    lease_expires: datetime | None
    domains_generation: int
    domains_digest: str
    time: datetime


class StaleGeneration(Unreachable):
    """409: somebody else changed the machine in between. ``state`` is the machine's state now."""

    def __init__(self, where: str, state: MachineState) -> None:
        what = f"the machine is at generation {state.generation} already"
        super().__init__(what, where=where, todo="read its state and decide again", status=409)
        self.state = state


def fetch(
    address: str,
    nonce: bytes,
    *,
    expected_spki: str | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
    dial: Dial | None = None,
) -> Fetched:
    """Ask for fresh evidence over ``nonce`` (16 to 64 bytes). ``timeout``: seconds for all attempts together.

    Raises Unreachable, BadInput for an answer that is no evidence, KeyMismatch (nothing sent) when the connection
    ends in another key than ``expected_spki``.
    """
    if not NONCE_BYTES[0] <= len(nonce) <= NONCE_BYTES[1]:
        raise BadInput(f"a nonce of {len(nonce)} bytes", where="nonce", todo="use 16 to 64 bytes")
    body = {"nonce": base64.b64encode(nonce).decode()}
    answer = _retrying(
        address,
        "POST",
        "/attestation",
        body,
        expected_spki=expected_spki,
        timeout=timeout,
        attempts=attempts,
        dial=dial,
    )
    evidence = Collection.from_json(answer.value, where=f"{address}/attestation")
    return Fetched(evidence, answer.tls_spki, answer.certificate)


def activate(
    address: str, challenge: Challenge, *, expected_spki: str, timeout: float = 30.0, dial: Dial | None = None
) -> bytes:
    """Have the machine's TPM open ``challenge`` (TPM2_ActivateCredential); returns the secret that it found.

    Raises KeyMismatch (nothing sent) or Unreachable; status 4xx when the TPM refuses.
    """
    body = {
        "credential_blob": base64.b64encode(challenge.credential_blob).decode(),
        "secret": base64.b64encode(challenge.secret).decode(),
    }
    answer = _once(
        address, "POST", "/attestation/activate", body, expected_spki=expected_spki, timeout=timeout, dial=dial
    )
    fields = Fields(answer.value, f"{address}/attestation/activate")
    secret = fields.base64("secret", 64)
    fields.done()
    return secret


def state(
    address: str, *, expected_spki: str, timeout: float = 15.0, attempts: int = 3, dial: Dial | None = None
) -> MachineState:
    """The machine's control state. Raises KeyMismatch, Unreachable, BadInput."""
    answer = _retrying(
        address,
        "GET",
        "/control/v1/state",
        None,
        expected_spki=expected_spki,
        timeout=timeout,
        attempts=attempts,
        dial=dial,
    )
    return parse_state(answer.value, where=f"{address}/control/v1/state")


def control_call(
    address: str,
    action: str,
    envelope: Mapping[str, object],
    *,
    expected_spki: str,
    timeout: float = 30.0,
    dial: Dial | None = None,
) -> MachineState:
    """Send a signed control message: ``action`` is ``admit``, ``revoke`` or ``domains``. Never retried.

    Returns the new state. Raises KeyMismatch (nothing sent), StaleGeneration on 409, Unreachable otherwise.
    """
    path = control.PREFIX + action
    answer = _once(
        address, control.METHODS[action], path, envelope, expected_spki=expected_spki, timeout=timeout, dial=dial
    )
    return parse_state(answer.value, where=address + path)


def ready(address: str, *, timeout: float = 5.0, dial: Dial | None = None) -> tuple[bool, tuple[str, ...]]:
    """The readiness probe: (True, ()) or (False, reasons). Raises Unreachable when nothing answers."""
    try:
        _once(address, "GET", "/ready", None, timeout=timeout, dial=dial)
    except _Refused as error:
        if error.status != 503 or not isinstance(error.value, dict):
            raise
        return False, Fields(error.value, f"{address}/ready").texts("reasons", 256)
    return True, ()


def parse_state(value: object, *, where: str) -> MachineState:
    """Read a control state. Raises BadInput."""
    fields = Fields(value, where)
    lease, domains = fields.member("lease"), fields.member("domains")
    return MachineState(
        boot=fields.text("boot", limit=64),
        environment=fields.text("environment", limit=64),
        tls_spki=fields.digest("tls_spki"),
        generation=fields.integer("generation", 0, jcs.MAX_INTEGER),
        lease=lease.choice("state", "none", "valid", "expired", "revoked"),
        lease_expires=None if lease.raw("expires") is None else lease.time("expires"),
        domains_generation=domains.integer("generation", 0, jcs.MAX_INTEGER),
        domains_digest=domains.digest("digest", allow_empty=True),
        time=fields.time("time"),
    )


@dataclass(frozen=True)
class _Answer:
    value: jcs.Json
    tls_spki: str
    certificate: bytes


class _Refused(Unreachable):
    """An answer with another status than 200; ``value`` is its JSON, or None."""

    def __init__(self, where: str, status: int, value: jcs.Json, retry_after: float) -> None:
        words, todo = f"answered {status}: {_message(value)}", ""
        if 300 <= status < 400:
            words, todo = (
                f"answered {status}: a redirect, which is never followed",
                "give the machine's own address",
            )
        elif status in (404, 405):
            todo = _RIGHT_PORT
        super().__init__(words, where=where, status=status, todo=todo)
        self.value = value
        self.retry_after = retry_after


def _message(value: jcs.Json) -> str:
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        text = f"{error.get('code', '')}: {error.get('message', '')}"
        return "".join(c if c.isprintable() else "?" for c in text)[:300]
    return "no explanation"


def split(address: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[v6]:port`` or ``https://host:port``. Raises BadInput."""
    if len(address) > MAX_ADDRESS:
        raise BadInput(f"an address of {len(address)} characters", where="address", todo="write host:port")
    text = address if "://" in address else f"https://{address}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # what looking it up will do
    except ValueError as error:
        raise BadInput(f"{address[:200]!r} is no address", where="address", todo="write host:port") from error
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None
    if parts.scheme != "https" or not host or host.startswith(".") or rest or port == 0:
        raise BadInput(f"{address[:200]!r} is no address", where="address", todo="write https://host:port")
    return host, default_port if port is None else port


def _retrying(
    address: str,
    method: str,
    path: str,
    body: Mapping[str, object] | None,
    *,
    timeout: float,
    attempts: int,
    expected_spki: str | None = None,
    dial: Dial | None = None,
) -> _Answer:
    """For calls that change nothing: a few tries with growing, jittered pauses inside one time limit."""
    end = time.monotonic() + timeout
    pause = 0.25
    for attempt in range(1, attempts + 1):
        try:
            left = end - time.monotonic()
            return _once(address, method, path, body, expected_spki=expected_spki, timeout=left, dial=dial)
        except Unreachable as error:
            if attempt == attempts or (error.status and error.status not in _RETRIED):
                raise
            wait = pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, no secret
            if isinstance(error, _Refused):
                wait = max(wait, error.retry_after)
            if time.monotonic() + wait >= end:
                raise
            time.sleep(wait)
            pause *= 2
    raise BadInput("at least one attempt is needed", where="attempts")


def _once(
    address: str,
    method: str,
    path: str,
    body: Mapping[str, object] | None,
    *,
    timeout: float,
    expected_spki: str | None = None,
    dial: Dial | None = None,
) -> _Answer:
    host, port = split(address)
    where = f"https://{host}:{port}{path}"
    if timeout <= 0:
        raise Unreachable("no answer in time", where=where, todo="is the machine up?")
    data = None if body is None else jcs.dumps(body)
    end = time.monotonic() + timeout
    try:
        raw = (dial or _dial)((host, port), timeout)
    except OSError as error:
        raise Unreachable(f"can't connect: {error}", where=where, todo="is the machine up?") from error
    with raw, _deadline(raw, end) as expired:
        try:
            raw.settimeout(timeout)
            answer = _exchange(raw, host, port, method, path, data, expected_spki)
            if expired.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            if expired.is_set() or isinstance(error, TimeoutError):
                raise Unreachable("no answer in time", where=where, todo="is the machine up?") from error
            if isinstance(error, ssl.SSLError) and error.reason:
                words = f"TLS 1.3 failed: {error.reason.replace('_', ' ').lower()}"
                raise Unreachable(words, where=where, todo=_RIGHT_PORT) from error
            raise Unreachable(f"the connection broke: {str(error) or type(error).__name__}", where=where) from error
    certificate, status, retry_after, content = answer
    if len(content) > MAX_ANSWER:
        raise BadInput(f"an answer of more than {MAX_ANSWER >> 20} MiB", where=where)
    if status == 200:
        try:
            return _Answer(jcs.loads(content, where=where), spki_of(certificate), certificate)
        except BadInput as error:
            raise BadInput(error.what, where=where, todo=error.todo or _RIGHT_PORT) from error
    value = _json_or_none(content)
    if status == 409 and isinstance(value, dict) and "state" in value:
        raise StaleGeneration(where, parse_state(value["state"], where=where))
    raise _Refused(where, status, value, retry_after)


def spki_of(certificate: bytes) -> str:
    """SPKI digest of a DER certificate's key. Raises BadInput."""
    return x509.parse(certificate).spki_digest


def _dial(target: tuple[str, int], timeout: float) -> socket.socket:
    """A connection to the first of the host's addresses that takes one, all within ``timeout``."""
    end = time.monotonic() + timeout
    trouble = OSError("the name has no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(*target, type=socket.SOCK_STREAM):
        raw = socket.socket(family, kind, protocol)
        try:
            raw.settimeout(max(0.001, end - time.monotonic()))
            raw.connect(place)
        except OSError as error:
            raw.close()
            trouble = error
        else:
            return raw
    raise trouble


@contextlib.contextmanager
def _deadline(raw: socket.socket, end: float) -> Iterator[threading.Event]:
    """Shuts the connection at ``end``: socket time-outs alone let a slow sender go on for ever."""
    expired = threading.Event()
    same = raw.dup()  # TLS takes the descriptor of ``raw`` away; this one stays for the cut

    def cut() -> None:
        expired.set()
        with contextlib.suppress(OSError):
            same.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, end - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
        timer.join()
        same.close()


def tls_context() -> ssl.SSLContext:
    """TLS 1.3 without any CA: the caller compares the connection's key with the attested one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    return context


def _exchange(
    raw: socket.socket, host: str, port: int, method: str, path: str, data: bytes | None, expected_spki: str | None
) -> tuple[bytes, int, float, bytes]:
    """One request over one new TLS connection: its certificate, status, Retry-After in seconds, and content."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with tls_context().wrap_socket(raw, server_hostname=host) as secured:
        certificate = secured.getpeercert(binary_form=True) or b""
        spki = spki_of(certificate)
        if expected_spki is not None and spki != expected_spki:
            raise KeyMismatch(
                f"the connection ends in key {spki}, the attested one is {expected_spki}",
                where=f"https://{authority}{path}",
                todo="somebody is in the middle, or the machine was rebooted: attest it again",
            )
        connection = http.client.HTTPConnection(host, port)
        connection.sock = secured
        headers = {"Host": authority, "Accept": "application/json", "Connection": "close"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, body=data, headers=headers)
        response = connection.getresponse()
        content = response.read(MAX_ANSWER + 1)
        return certificate, response.status, _retry_after(response.headers.get("Retry-After")), content


def _json_or_none(content: bytes) -> jcs.Json:
    try:
        return jcs.loads(content)
    except BadInput:
        return None


def _retry_after(header: str | None) -> float:
    """Seconds, at most 10; dates and nonsense count as none."""
    return min(10.0, float(header)) if header and header.isascii() and header.isdigit() and len(header) < 6 else 0.0
