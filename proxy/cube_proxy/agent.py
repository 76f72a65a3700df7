# SPDX-License-Identifier: Apache-2.0
"""cube-agent: one process per boot that holds the keys, answers evidence and control, and drives Envoy by files.

It fails closed: without it Envoy is stopped by the service manager, and a boot has one life of it: a second start
would find PCR 8 already extended.
"""

from __future__ import annotations

import asyncio
import grp
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cube_attestation import launch
from cube_attestation.claims import Claims, DomainsClaim
from cube_attestation.errors import AttestationError
from cube_attestation.launch import LaunchDocument, Model

from . import clock as clocks
from . import control, disks, envoy, evidence, metrics
from .clock import Clock
from .control import Boot, State
from .envoy_files import SECRET_FILE, EnvoyFiles, NotInForce
from .evidence import Collector, TpmQueue
from .http import Handler, HttpError, Request, Response, json_response, serve_connection
from .log import log
from .models import OLLAMA_SOCKET, VLLM_RUN, Models
from .notify import notify
from .tls import TlsKey
from .tpm import LAUNCH_PCR, Tpm, TpmError

if TYPE_CHECKING:
    from .audit import Auditor
    from .audit_service import AuditService

MAX_CONTROL_BYTES = 16 << 20
TICK_SECONDS = 0.5
VERITY_TICKS = 4
ENVOY_SECONDS = 2.0
ENVOY_START_SECONDS = 120.0


@dataclass(frozen=True)
class Settings:
    """Where things are. The image uses these defaults; tests say otherwise."""

    tcti: str = "device:/dev/tpmrm0"
    launch_disk: Callable[[], bytes] = field(default=lambda: disks.read_launch(disks.find("launch")))
    open_volume: Callable[[str, Model, Path], None] = disks.open_volume
    is_corrupted: Callable[[str], bool] = disks.is_corrupted
    run: Path = Path("/run/cube")
    models_run: Path = Path("/run/cube-models")
    admin_socket: Path = Path("/run/envoy/admin.sock")
    backend_socket: Path = OLLAMA_SOCKET
    vllm_run: Path = VLLM_RUN
    group: str = "envoy"
    firmware_log: Path = evidence.FIRMWARE_LOG
    systemd_log: Path = evidence.SYSTEMD_LOG
    os_release: Path = Path("/usr/lib/os-release")


class Agent:
    """One boot: identity, state, and the handlers of the management port."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._group = grp.getgrnam(settings.group).gr_gid
        self._files = EnvoyFiles(settings.run / "envoy", settings.admin_socket, self._group)
        envelope = launch.read_volume(settings.launch_disk())
        self._launch, self._launch_digest = launch.peek(envelope)
        self._tpm = Tpm(settings.tcti)
        self._tpm.extend(LAUNCH_PCR, bytes.fromhex(self._launch_digest.removeprefix("sha256:")))
        log(f"launch {self._launch_digest} environment {self._launch.environment}")
        self._tls = TlsKey.generate()
        self._audit_key = TlsKey.generate()
        self._audit: AuditService | None = None
        self._boot = _boot(self._launch, self._tls.spki)
        self._state = State()
        self._created = int(Clock.read().wall)
        self._salt = secrets.token_bytes(32)
        self._refresh()
        self._write_certificate(self._tls.self_signed(self._launch.hostnames, datetime.now(UTC)))
        self._models = Models(self._launch.models, settings.models_run, settings.open_volume)
        self._models.changed = self._refresh
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._image = _image_id(settings.os_release)
        self._queue = TpmQueue()
        self._envelope = envelope
        self._collector: Collector | None = None
        self.counters = metrics.Counters()
        self._handlers: dict[tuple[str, str], Handler] = {
            ("GET", "/health"): self._health,
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/attestation"): self._attestation,
            ("POST", "/attestation/activate"): self._activate,
            ("GET", control.STATE): self._control_state,
            ("POST", control.ADMIT): self._control,
            ("POST", control.REVOKE): self._control,
            ("PUT", control.DOMAINS): self._control,
        }

    async def run(self) -> None:
        """Open the models, make the attestation key, then answer until the process ends."""
        opening = asyncio.create_task(asyncio.to_thread(self._models.open_all))
        making = asyncio.create_task(asyncio.to_thread(self._make_collector))
        await asyncio.sleep(0)  # both are under way
        audit = self._audit = self._start_audit()
        await making
        await opening
        self._refresh()
        server = await asyncio.start_unix_server(
            lambda reader, writer: serve_connection(reader, writer, self.handle, MAX_CONTROL_BYTES),
            path=self._listen_path(),
        )
        os.chown(self._listen_path(), -1, self._group)
        self._listen_path().chmod(0o660)
        notify("READY=1")
        log(f"agent up, boot {self._boot.id}, tls {self._boot.tls_spki}")
        async with server:
            await asyncio.gather(
                self._models.try_all(self._settings.backend_socket, self._settings.vllm_run),
                self._watch(audit),
                self._watch_envoy(),
                audit.pipe.watch(self._settings.admin_socket),
                self._broken,
            )

    async def _watch_envoy(self) -> None:
        """End the agent, and Envoy with it, if Envoy does not follow: an expired lease must not go on serving."""
        await self._files.in_force(ENVOY_START_SECONDS)
        while True:
            await asyncio.sleep(ENVOY_SECONDS)
            await self._files.in_force()

    def _start_audit(self) -> AuditService:
        from . import audit_service
        from .audit import Origin

        origin = Origin(self._boot.environment, self._boot.id, self._tls.spki, self._launch_digest)
        return audit_service.start(self._settings.run, origin, self._audit_key, self._guest_time, self._refresh)

    def _auditor(self) -> Auditor:
        if self._audit is None:
            raise HttpError(503, "starting", "The agent is starting.", {"retry-after": "1"})
        return self._audit.auditor

    def _listen_path(self) -> Path:
        return self._settings.run / "agent.sock"

    def _make_collector(self) -> None:
        self._tpm.create_ak()
        self._collector = Collector(
            self._tpm,
            self._envelope,
            firmware_log=self._settings.firmware_log,
            systemd_log=self._settings.systemd_log,
        )

    async def _watch(self, audit: AuditService) -> None:
        """Alive signs for the watchdog; ends leases on time; looks for changed blocks."""
        tick = 0
        while True:
            notify("WATCHDOG=1")
            audit.pipe.tick()
            self._refresh()
            if tick % VERITY_TICKS == 0:
                for volume in self._models.volumes():
                    if self._settings.is_corrupted(volume):
                        self._models.fail_volume(volume, "dm-verity found a changed block")
            tick += 1
            await asyncio.sleep(self._until_next_tick())

    def _until_next_tick(self) -> float:
        clock = Clock.read()
        lease = self._state.lease
        if lease is None or lease.status(clock, self._state.floor) != "valid":
            return TICK_SECONDS
        return min(TICK_SECONDS, lease.seconds_left(clock, self._state.floor) + 0.001)

    def _view(self) -> envoy.View:
        state = self._state
        audited = self._audit is not None and self._audit.auditor.healthy
        serving = audited and control.serves(state, Clock.read())
        return envoy.View(
            environment=self._launch.environment,
            domains=state.domains if serving else None,
            failed=self._models.failed() if serving else frozenset(),
            max_body_bytes=self._launch.max_body_bytes,
            created=self._created,
            models=self._launch.models,
            salt=self._salt,
            ollama_socket=str(self._settings.backend_socket),
            vllm_run=str(self._settings.vllm_run),
        )

    def _refresh(self) -> None:
        """Bring what Envoy serves in line with the state at this moment."""
        self._files.show(self._view())

    def _write_certificate(self, chain: str) -> None:
        self._files.write(SECRET_FILE, envoy.secret(self._tls.private_pem(), chain))

    async def handle(self, request: Request) -> Response:
        """One request of the management port."""
        try:
            if self._audit is not None and self._audit.api.answers(request):
                return self._audit.api.answer(request, self._guest_time())
            handler = self._handlers.get((request.method, request.target))
            if handler is None:
                raise HttpError(404, "not_found", "No such method and path; see docs/formats.md.")
            return await handler(request)
        except HttpError as error:
            self.counters.add("refused", error.code)
            return error.response()
        except TpmError as error:
            log(f"TPM: {error}")
            return HttpError(500, "tpm.failed", "The TPM did not do what was asked.").response()
        except Exception as error:  # a defect of ours must not look like a network failure
            log(f"{request.target}: {type(error).__name__}: {error}")
            return HttpError(500, "internal", "The agent failed to answer; its log says why.").response()

    async def _health(self, _request: Request) -> Response:
        return json_response({"status": "pass", "service": "cube-agent", "boot": self._boot.id})

    async def _ready(self, _request: Request) -> Response:
        found = control.reasons(self._state, self._models.states, Clock.read())
        if found or self._state.lease is None:
            return json_response({"ready": False, "reasons": found}, 503)
        return json_response({"ready": True, "lease_expires": self._state.lease.expires_text()})

    async def _metrics(self, _request: Request) -> Response:
        text = metrics.render(self._state, self._models.states, Clock.read(), self.counters, self._auditor())
        return Response(200, text.encode(), {"content-type": "text/plain; version=0.0.4"})

    async def _attestation(self, request: Request) -> Response:
        nonce = evidence.parse_request(request.body)
        collector = self._collector
        if collector is None:
            raise HttpError(503, "starting", "The attestation key is being made.", {"retry-after": "1"})
        async with self._queue.turn():
            body = await asyncio.to_thread(collector.collect, lambda: self._claims(nonce))
        self.counters.add("evidence", "made")
        return Response(200, body, {"content-type": "application/json"})

    async def _activate(self, request: Request) -> Response:
        blob, secret = evidence.parse_activation(request.body)
        async with self._queue.turn():
            try:
                found = await asyncio.to_thread(self._tpm.activate, blob, secret)
            except TpmError as error:
                log(f"activation refused: {error}")
                raise HttpError(
                    403, "activation.refused", "The credential is not for this TPM's EK and attestation key."
                ) from error
        return json_response({"secret": evidence.b64(found)})

    async def _control_state(self, _request: Request) -> Response:
        return json_response(control.describe(self._boot, self._state, Clock.read()))

    async def _control(self, request: Request) -> Response:
        try:
            after = control.apply(
                self._boot, self._state, request.body, request.method, request.target, Clock.read()
            )
        except control.Refusal as error:
            log(f"control: {request.target} refused: {error.code}")
            if error.status != 409:
                raise
            self.counters.add("refused", error.code)
            stated = control.describe(self._boot, self._state, Clock.read())
            return json_response({"error": {"code": error.code, "message": error.message}, "state": stated}, 409)
        before, self._state = self._state, after
        self._auditor().admitted(after.bundle)
        if after.domains is not None and after.domains is not before.domains:
            began = int(Clock.read().wall * 1000)
            self._auditor().configured(after.domains, after.domains_generation, began)
        self._refresh()
        if after.certificate != before.certificate:
            self._write_certificate(after.certificate)
        try:
            await self._files.in_force()
        except NotInForce as error:
            if not self._broken.done():
                self._broken.set_exception(error)
            raise HttpError(500, "envoy.failed", f"{error}; this machine stops.") from error
        self.counters.add("control", request.target.rsplit("/", 1)[-1])
        log(f"control: {request.target} accepted, generation {after.generation}")
        return json_response(control.describe(self._boot, after, Clock.read()))

    def _guest_time(self) -> float:
        return clocks.now(Clock.read(), self._state.floor)

    def _claims(self, nonce: bytes) -> Claims:
        state = self._state
        return Claims(
            nonce=nonce,
            environment=self._launch.environment,
            boot=self._boot.id,
            tls_spki=self._tls.spki,
            audit_spki=self._audit_key.spki,
            time=datetime.now(UTC),
            launch=self._launch_digest,
            domains=DomainsClaim(state.domains_generation, state.domains.digest if state.domains else ""),
            models=self._models.claims(),
            image=self._image,
        )


def _boot(document: LaunchDocument, tls_spki: str) -> Boot:
    return Boot(
        environment=document.environment,
        id=secrets.token_hex(16),
        tls_spki=tls_spki,
        control_keys=document.control_keys,
        models=frozenset(document.models),
    )


def _image_id(os_release: Path) -> str:
    """``IMAGE_ID`` and ``IMAGE_VERSION`` of os-release(5), informative; empty when there are none."""
    try:
        lines = os_release.read_text().splitlines()
    except OSError:
        return ""
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    parts = (values.get(name, "").strip('"') for name in ("IMAGE_ID", "IMAGE_VERSION"))
    return "-".join(part for part in parts if part)[:200]


async def _run(settings: Settings) -> None:
    await Agent(settings).run()


def main(settings: Settings | None = None) -> int:
    """Run the agent; returns 1 with one line that says why when it can't."""
    os.umask(0o022)
    try:
        asyncio.run(_run(settings or Settings()))
    except (AttestationError, disks.DiskError, TpmError, NotInForce, OSError, KeyError) as error:
        log(f"cube: halt: the agent can't go on: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
