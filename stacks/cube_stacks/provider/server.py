# SPDX-License-Identifier: Apache-2.0
"""The provider protocol (pulumi/provider.proto) over `Resource` objects, and the process around it.

Written against the raw protocol and not the SDK's own provider classes: those give every error as UNKNOWN (which
marks the update as possibly corrupt), and can neither keep a half-healthy resource nor ask for a refresh before
each update.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import any_pb2, empty_pb2
from pulumi.runtime.proto import (
    engine_pb2,
    engine_pb2_grpc,
    plugin_pb2,
    provider_pb2,
    provider_pb2_grpc,
    status_pb2,
)

from cube_stacks.provider import wire
from cube_stacks.provider.base import UNKNOWN, Code, Context, Failed, Properties, Resource, State, Unhealthy
from cube_stacks.provider.schema import RESOURCES, package_schema, problems

_REPEAT_S: Final = 1.5  # a status line is repeated this often, so that no wait is silent for 2 s
_STOP_S: Final = 10  # grace for work in progress after a signal
_WORKERS: Final = 64  # gates of many machines wait at the same time
_UNLIMITED: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """Serves `resources` by token."""

    def __init__(self, resources: Sequence[Resource], version: str) -> None:
        self._resources: Mapping[str, Resource] = {resource.token: resource for resource in resources}
        self._version = version
        self._engine: engine_pb2_grpc.EngineStub | None = None
        self._running: set[threading.Event] = set()
        self._cancelled = False
        self._lock = threading.Lock()

    def connect(self, engine: str) -> None:
        """Use the engine at `engine` (host:port) for logs and status lines."""
        self._engine = engine_pb2_grpc.EngineStub(grpc.insecure_channel(engine, options=_UNLIMITED))

    def cancel(self) -> None:
        """Ask all work to stop, and all later work not to start."""
        with self._lock:
            self._cancelled = True
            running = set(self._running)
        for event in running:
            event.set()

    # The package

    def Handshake(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        if request.engine_address:
            self.connect(request.engine_address)
        return provider_pb2.ProviderHandshakeResponse(
            accept_secrets=True,
            accept_resources=False,
            accept_outputs=False,
            supports_autonaming_configuration=False,
        )

    def Attach(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        self.connect(request.address)
        return empty_pb2.Empty()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return plugin_pb2.PluginInfo(version=self._version)

    def GetSchema(self, request: Any, context: Any) -> Any:
        if request.version not in (0, 1):
            _abort(context, "INVALID_ARGUMENT", f"schema version {request.version} is not known")
        return provider_pb2.GetSchemaResponse(schema=package_schema(self._version))

    def CheckConfig(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        # The provider takes no configuration; another version of it manages the same resources.
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return provider_pb2.ConfigureResponse(
            acceptSecrets=True, supportsPreview=True, acceptResources=False, acceptOutputs=False
        )

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        self.cancel()
        return empty_pb2.Empty()

    # Resources

    def Check(self, request: Any, context: Any) -> Any:
        with self._call(request, context) as (resource, _):
            inputs, secrets = wire.decode(request.news)
            failures = list(problems(resource.token, inputs))
            if not failures:
                inputs, failures = resource.check(inputs)
            return provider_pb2.CheckResponse(
                inputs=wire.encode(inputs, secrets),
                failures=[provider_pb2.CheckFailure(property=name, reason=reason) for name, reason in failures],
            )

    def Diff(self, request: Any, context: Any) -> Any:
        with self._call(request, context) as (resource, _):
            ignored = set(request.ignoreChanges)
            news = {name: value for name, value in wire.decode(request.news)[0].items() if name not in ignored}
            olds = {
                name: value for name, value in wire.decode(request.old_inputs)[0].items() if name not in ignored
            }
            found = resource.diff(olds, wire.decode(request.olds)[0], news)
            changed = (*found.replaces, *found.updates)
            return provider_pb2.DiffResponse(
                replaces=found.replaces,
                diffs=changed,
                changes=provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE,
                detailedDiff={name: _kind(name, olds, news, name in found.replaces) for name in changed},
                hasDetailedDiff=True,
                # Ports and names are taken by the old one until it is gone.
                deleteBeforeReplace=bool(found.replaces),
            )

    def Create(self, request: Any, context: Any) -> Any:
        with self._call(request, context) as (resource, ctx):
            inputs, secrets = wire.decode(request.properties)
            if request.preview:
                return provider_pb2.CreateResponse(
                    properties=wire.encode(_previewed(resource, ctx, inputs), secrets),
                    refresh_before_update=resource.refresh_before_update,
                )
            with self._unhealthy(resource, context, inputs, secrets):
                state = resource.create(ctx, inputs)
            return provider_pb2.CreateResponse(
                id=state.id,
                properties=wire.encode(state.outputs, secrets),
                refresh_before_update=resource.refresh_before_update,
            )

    def Read(self, request: Any, context: Any) -> Any:
        with self._call(request, context) as (resource, ctx):
            inputs, hidden = wire.decode(request.inputs)
            outputs, also_hidden = wire.decode(request.properties)
            secrets = hidden | also_hidden
            with self._unhealthy(resource, context, inputs, secrets):
                state = _read(resource, ctx, request.id, inputs, outputs)
            if state is None:
                return provider_pb2.ReadResponse()
            return provider_pb2.ReadResponse(
                id=state.id,
                properties=wire.encode(state.outputs, secrets),
                inputs=request.inputs,
                refresh_before_update=resource.refresh_before_update,
            )

    def Update(self, request: Any, context: Any) -> Any:
        with self._call(request, context) as (resource, ctx):
            inputs, secrets = wire.decode(request.news)
            if request.preview:
                return provider_pb2.UpdateResponse(
                    properties=wire.encode(_previewed(resource, ctx, inputs), secrets),
                    refresh_before_update=resource.refresh_before_update,
                )
            with self._unhealthy(resource, context, inputs, secrets):
                state = resource.update(ctx, request.id, wire.decode(request.olds)[0], inputs)
            return provider_pb2.UpdateResponse(
                properties=wire.encode(state.outputs, secrets), refresh_before_update=resource.refresh_before_update
            )

    def Delete(self, request: Any, context: Any) -> Any:
        with self._call(request, context) as (resource, ctx):
            resource.delete(ctx, request.id, wire.decode(request.properties)[0])
            return empty_pb2.Empty()

    # Around each call

    @contextmanager
    def _call(self, request: Any, context: Any) -> Iterator[tuple[Resource, Context]]:
        """The resource that a request is for, and its context; what goes wrong becomes one clean error."""
        token = request.type or request.urn.split("::")[2].rpartition("$")[2]
        resource = self._resources.get(token)
        if resource is None:
            _abort(context, "INVALID_ARGUMENT", f"no resource type {token!r} in this provider")
        status = _Status(self._engine, request.urn)
        ctx = Context(
            urn=request.urn,
            timeout_s=getattr(request, "timeout", 0.0) or None,
            progress=status.show,
            warn=status.warn,
        )
        with self._lock:
            self._running.add(ctx.cancelled)
            if self._cancelled:
                ctx.cancelled.set()
        context.add_callback(ctx.cancelled.set)  # the engine went away
        try:
            with status:
                yield resource, ctx
        except Failed as failure:
            _abort(context, failure.code, failure.message)
        except Exception as error:
            if context.code() is not None:
                raise  # an abort on its way out
            status.debug(traceback.format_exc())
            kind = type(error).__name__
            _abort(context, "ABORTED", f"unexpected {kind} in {token}, a bug: {error} (see pulumi -d)")
        finally:
            with self._lock:
                self._running.discard(ctx.cancelled)

    @contextmanager
    def _unhealthy(
        self, resource: Resource, context: Any, inputs: Properties, secrets: frozenset[str]
    ) -> Iterator[None]:
        """Turn `Unhealthy` into the error whose details let the engine keep the resource with its reasons."""
        try:
            yield
        except Unhealthy as unhealthy:
            detail = provider_pb2.ErrorResourceInitFailed(
                id=unhealthy.id,
                properties=wire.encode(unhealthy.outputs, secrets),
                reasons=unhealthy.reasons,
                inputs=wire.encode(inputs, secrets),
                refresh_before_update=resource.refresh_before_update,
            )
            _abort(context, "FAILED_PRECONDITION", str(unhealthy), detail)


@dataclass(frozen=True)
class _Ended(grpc.Status):  # type: ignore[misc]
    """How a call ends, as `abort_with_status` wants it."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...] | None


def _abort(context: Any, code: Code, message: str, detail: Any = None) -> NoReturn:
    status = grpc.StatusCode[code]
    metadata = None
    if detail is not None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        whole = status_pb2.Status(code=status.value[0], message=message, details=[packed])
        metadata = (("grpc-status-details-bin", whole.SerializeToString()),)
    context.abort_with_status(_Ended(status, message, metadata))
    raise AssertionError("abort_with_status returned")


def _read(resource: Resource, ctx: Context, id: str, inputs: Properties, outputs: Properties) -> State | None:
    """A known resource that can't be looked at is unhealthy: a plain error would stop even `pulumi destroy`."""
    try:
        return resource.read(ctx, id, inputs, outputs)
    except Failed as failure:
        if not outputs or failure.code == "CANCELLED":
            raise  # there is nothing to keep, or nobody to tell
        raise Unhealthy(id, outputs, [failure.message]) from failure


def _previewed(resource: Resource, ctx: Context, inputs: Properties) -> Properties:
    note = resource.preview_note(inputs)
    if note:
        ctx.progress(note)
    known = resource.preview(inputs)
    return dict.fromkeys(RESOURCES[resource.token].outputs, UNKNOWN) | known


def _kind(name: str, olds: Properties, news: Properties, replace: bool) -> Any:
    kinds = provider_pb2.PropertyDiff
    if name not in olds:
        kind = kinds.ADD_REPLACE if replace else kinds.ADD
    elif name not in news:
        kind = kinds.DELETE_REPLACE if replace else kinds.DELETE
    else:
        kind = kinds.UPDATE_REPLACE if replace else kinds.UPDATE
    return kinds(kind=kind, inputDiff=name in olds or name in news)


class _Status:
    """The status line of one resource in the engine's display; repeats itself with the seconds gone by."""

    def __init__(self, engine: engine_pb2_grpc.EngineStub | None, urn: str) -> None:
        self._engine = engine
        self._urn = urn
        self._line = ""
        self._since = time.monotonic()
        self._changed = threading.Event()
        self._ended = threading.Event()
        self._repeater: threading.Thread | None = None

    def __enter__(self) -> _Status:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._repeater is not None:
            self._repeater.join()

    def show(self, line: str) -> None:
        if line == self._line:
            return
        self._line = line
        self._since = time.monotonic()
        self._log(engine_pb2.INFO, line, ephemeral=True)
        if self._repeater is None:
            self._repeater = threading.Thread(target=self._repeat, daemon=True)
            self._repeater.start()

    def warn(self, message: str) -> None:
        self._log(engine_pb2.WARNING, message)

    def debug(self, message: str) -> None:
        self._log(engine_pb2.DEBUG, message)

    def _repeat(self) -> None:
        while not self._ended.wait(_REPEAT_S):
            seconds = time.monotonic() - self._since
            if seconds >= _REPEAT_S:
                self._log(engine_pb2.INFO, f"{self._line} ({seconds:.0f} s)", ephemeral=True)

    def _log(self, severity: Any, message: str, ephemeral: bool = False) -> None:
        if self._engine is None:
            return
        # A display that is gone is no reason to fail the work.
        try:
            self._engine.Log(
                engine_pb2.LogRequest(severity=severity, message=message, urn=self._urn, ephemeral=ephemeral),
                timeout=5,
            )
        except grpc.RpcError:
            return


def serve(resources: Sequence[Resource], version: str, arguments: Sequence[str]) -> int:
    """Run the provider process until the engine stops it or goes away.

    `arguments` as the engine gives them: flags of its own, then its address, which is missing when a user starts
    the provider to attach to it. The first line on standard output is our port.
    """
    provider = Provider(resources, version)
    positional = [argument for argument in arguments if not argument.startswith("-")]
    if positional:
        provider.connect(positional[-1])
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=_WORKERS), options=_UNLIMITED)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    port = server.add_insecure_port("127.0.0.1:0")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    wait_for_end(stop)
    provider.cancel()
    server.stop(_STOP_S).wait()
    return 0


def wait_for_end(stop: threading.Event, interval_s: float = 0.5) -> None:
    """Return when `stop` is set or our parent is gone: a killed engine must leave no plugin behind."""
    parent = os.getppid()
    while not stop.wait(interval_s):
        if os.getppid() != parent:
            return
