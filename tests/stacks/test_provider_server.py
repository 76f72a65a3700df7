# SPDX-License-Identifier: Apache-2.0
"""The provider protocol as the engine speaks it: a real server, a real client, an engine that collects logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from cube_stacks.provider import wire
from cube_stacks.provider.base import UNKNOWN, Context, Diff, Failed, Properties, Resource, State, Unhealthy
from cube_stacks.provider.server import Provider
from google.protobuf import empty_pb2
from pulumi.runtime.proto import (
    engine_pb2,
    engine_pb2_grpc,
    plugin_pb2,
    provider_pb2,
    provider_pb2_grpc,
    status_pb2,
)

TOKEN = "cube-confidential:index:Edge"
URN = f"urn:pulumi:local::cube::cube:index:Parent${TOKEN}::edge"
INPUTS: Properties = {"listen": "127.0.0.1:1", "members": [], "ca": "pem", "hostname": "localhost"}


class Thing(Resource):
    """An Edge that does what its `listen` says."""

    token = TOKEN
    refresh_before_update = True
    replace_on = frozenset({"hostname"})

    def check(self, inputs: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        return inputs, [("listen", "is bad")] if inputs["listen"] == "bad" else []

    def preview(self, inputs: Properties) -> Properties:
        return {"endpoint": "https://known"} if inputs["listen"] == "known" else {}

    def create(self, ctx: Context, inputs: Properties) -> State:
        match inputs["listen"]:
            case "refused":
                raise Failed("FAILED_PRECONDITION", "tpm.pcr.mismatch: PCR 11 differs")
            case "bug":
                raise KeyError("oops")
            case "unhealthy":
                raise Unhealthy("id-1", {"endpoint": "half"}, ["first", "second"])
            case "slow":
                ctx.progress("starting")
                for _ in range(100):
                    ctx.pause(0.1)
            case "timeout":
                return State("id-1", {"endpoint": str(ctx.timeout_s)})
        return State("id-1", {"endpoint": inputs["listen"], "ca": inputs["ca"]})

    def read(self, ctx: Context, id: str, inputs: Properties, outputs: Properties) -> State | None:
        ctx.warn("looked")
        if id == "gone":
            return None
        if id in ("unreadable", "cancelled"):
            raise Failed("UNAVAILABLE" if id == "unreadable" else "CANCELLED", "the manifest can't be read")
        if id == "sick":
            raise Unhealthy(id, outputs, ["lease.expired"])
        return State(id, outputs)

    def update(self, ctx: Context, id: str, old_outputs: Properties, inputs: Properties) -> State:
        return State(id, {**old_outputs, "endpoint": inputs["listen"]})

    def delete(self, ctx: Context, id: str, outputs: Properties) -> None:
        if outputs.get("endpoint") == "stuck":
            raise Failed("UNAVAILABLE", "still in use")


class Engine(engine_pb2_grpc.EngineServicer):
    def __init__(self) -> None:
        self.logs: list[Any] = []

    def Log(self, request: Any, context: Any) -> Any:
        self.logs.append(request)
        return empty_pb2.Empty()


@dataclass
class Running:
    stub: Any
    provider: Provider
    engine: Engine
    channel: Any = field(repr=False)


@pytest.fixture
def running() -> Iterator[Running]:
    engine = Engine()
    engine_server = grpc.server(futures.ThreadPoolExecutor(4))
    engine_pb2_grpc.add_EngineServicer_to_server(engine, engine_server)
    engine_port = engine_server.add_insecure_port("127.0.0.1:0")
    engine_server.start()
    provider = Provider([Thing()], "0.1.0")
    server = grpc.server(futures.ThreadPoolExecutor(8))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = provider_pb2_grpc.ResourceProviderStub(channel)
        stub.Handshake(provider_pb2.ProviderHandshakeRequest(engine_address=f"127.0.0.1:{engine_port}"), timeout=5)
        yield Running(stub, provider, engine, channel)
    server.stop(0).wait()
    engine_server.stop(0).wait()


def create(running: Running, listen: str, **more: Any) -> Any:
    properties = wire.encode({**INPUTS, "listen": listen}, frozenset({"ca"}))
    return running.stub.Create(provider_pb2.CreateRequest(urn=URN, properties=properties, **more), timeout=20)


def init_failure(error: grpc.RpcError) -> Any:
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    detail = provider_pb2.ErrorResourceInitFailed()
    assert status.details[0].Unpack(detail)
    return detail


def test_handshake_and_configure_take_secrets_and_previews(running: Running) -> None:
    assert running.stub.Handshake(provider_pb2.ProviderHandshakeRequest()).accept_secrets
    configured = running.stub.Configure(provider_pb2.ConfigureRequest())
    assert configured.acceptSecrets
    assert configured.supportsPreview
    assert running.stub.GetPluginInfo(empty_pb2.Empty()).version == "0.1.0"


def test_attach_connects_to_the_engine(running: Running) -> None:
    running.stub.Attach(plugin_pb2.PluginAttach(address="127.0.0.1:1"))
    assert create(running, "x").id == "id-1"  # an engine that can't be reached stops nothing


def test_config_is_accepted_and_never_a_reason_to_replace(running: Running) -> None:
    news = wire.encode({"version": "0.1.0"})
    assert running.stub.CheckConfig(provider_pb2.CheckRequest(news=news)).inputs == news
    diff = running.stub.DiffConfig(provider_pb2.DiffRequest(news=news))
    assert diff.changes == provider_pb2.DiffResponse.DIFF_NONE


def check(running: Running, inputs: Properties) -> list[tuple[str, str]]:
    request = provider_pb2.CheckRequest(urn=URN, news=wire.encode(inputs))
    return [(failure.property, failure.reason) for failure in running.stub.Check(request).failures]


def test_check_by_schema_then_by_the_resource(running: Running) -> None:
    assert check(running, INPUTS) == []
    assert check(running, {**INPUTS, "members": UNKNOWN}) == []
    assert check(running, {**INPUTS, "listen": "bad"}) == [("listen", "is bad")]
    wrong = {"listen": 5, "members": [{"serviceAddress": "a"}], "hostname": "h", "extra": 1}
    assert check(running, wrong) == [
        ("extra", "unknown; known are listen, members, ca, hostname"),
        ("listen", "must be a string, is a number"),
        (
            "members[0].managementAddress",
            "missing: host:port of its management port, whose readiness is the health check.",
        ),
        ("ca", "missing: The environment's CA certificate, PEM, for health checks."),
    ]


def test_check_keeps_secrets_secret(running: Running) -> None:
    answer = running.stub.Check(provider_pb2.CheckRequest(urn=URN, news=wire.encode(INPUTS, frozenset({"ca"}))))
    assert wire.decode(answer.inputs) == (INPUTS, frozenset({"ca"}))


def test_diff_tells_replacements_from_updates(running: Running) -> None:
    def diff(news: Properties, **more: Any) -> Any:
        return running.stub.Diff(
            provider_pb2.DiffRequest(
                id="id-1", urn=URN, old_inputs=wire.encode(INPUTS), news=wire.encode(news), **more
            )
        )

    assert diff(INPUTS).changes == provider_pb2.DiffResponse.DIFF_NONE
    update = diff({**INPUTS, "listen": UNKNOWN})
    assert (list(update.replaces), list(update.diffs)) == ([], ["listen"])
    replace = diff({**INPUTS, "hostname": "other"})
    assert list(replace.replaces) == ["hostname"]
    assert replace.detailedDiff["hostname"].kind == provider_pb2.PropertyDiff.UPDATE_REPLACE
    assert diff({**INPUTS, "hostname": "other"}, ignoreChanges=["hostname"]).changes == (
        provider_pb2.DiffResponse.DIFF_NONE
    )


def test_previews_do_nothing_and_show_what_is_not_known(running: Running) -> None:
    assert wire.decode(create(running, "refused", preview=True).properties)[0] == {"endpoint": UNKNOWN}
    assert wire.decode(create(running, "known", preview=True).properties)[0] == {"endpoint": "https://known"}
    request = provider_pb2.UpdateRequest(id="id-1", urn=URN, news=wire.encode(INPUTS), preview=True)
    assert wire.decode(running.stub.Update(request).properties)[0] == {"endpoint": UNKNOWN}


def test_create_keeps_secrets_and_asks_for_refresh(running: Running) -> None:
    answer = create(running, "x")
    assert answer.id == "id-1"
    assert answer.refresh_before_update
    assert wire.decode(answer.properties) == ({"endpoint": "x", "ca": "pem"}, frozenset({"ca"}))


def test_custom_timeouts_reach_the_resource(running: Running) -> None:
    assert wire.decode(create(running, "timeout", timeout=90).properties)[0] == {"endpoint": "90.0"}
    assert wire.decode(create(running, "timeout").properties)[0] == {"endpoint": "None"}


@pytest.mark.parametrize(
    ("listen", "code", "words"),
    [
        ("refused", grpc.StatusCode.FAILED_PRECONDITION, "tpm.pcr.mismatch: PCR 11 differs"),
        ("bug", grpc.StatusCode.ABORTED, "unexpected KeyError"),
    ],
)
def test_errors_are_clean_and_never_mark_the_update_corrupt(
    running: Running, listen: str, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        create(running, listen)
    assert caught.value.code() == code
    assert words in caught.value.details()
    assert "Traceback" not in caught.value.details()
    if listen == "bug":
        assert any(log.severity == engine_pb2.DEBUG and "Traceback" in log.message for log in running.engine.logs)


def test_an_unhealthy_resource_is_kept_with_its_reasons(running: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        create(running, "unhealthy")
    detail = init_failure(caught.value)
    assert (detail.id, list(detail.reasons)) == ("id-1", ["first", "second"])
    assert wire.decode(detail.properties)[0] == {"endpoint": "half"}
    assert wire.decode(detail.inputs) == ({**INPUTS, "listen": "unhealthy"}, frozenset({"ca"}))
    assert detail.refresh_before_update


def read(running: Running, id: str) -> Any:
    outputs = wire.encode({"endpoint": "e"}, frozenset({"endpoint"}))
    return running.stub.Read(
        provider_pb2.ReadRequest(id=id, urn=URN, inputs=wire.encode(INPUTS), properties=outputs), timeout=5
    )


def test_read_well_gone_and_sick(running: Running) -> None:
    well = read(running, "id-1")
    assert (well.id, wire.decode(well.properties)) == ("id-1", ({"endpoint": "e"}, frozenset({"endpoint"})))
    assert wire.decode(well.inputs)[0] == INPUTS
    assert well.refresh_before_update
    assert read(running, "gone").id == ""
    with pytest.raises(grpc.RpcError) as caught:
        read(running, "sick")
    assert list(init_failure(caught.value).reasons) == ["lease.expired"]
    warnings = [log for log in running.engine.logs if log.severity == engine_pb2.WARNING]
    assert warnings[0].urn == URN
    assert not warnings[0].ephemeral


def test_what_cant_be_looked_at_is_kept_so_that_it_can_be_destroyed(running: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        read(running, "unreadable")
    detail = init_failure(caught.value)
    assert list(detail.reasons) == ["the manifest can't be read"]
    assert wire.decode(detail.properties)[0] == {"endpoint": "e"}
    with pytest.raises(grpc.RpcError) as caught:
        read(running, "cancelled")
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    with pytest.raises(grpc.RpcError) as caught:  # an import: nothing is known yet
        running.stub.Read(provider_pb2.ReadRequest(id="unreadable", urn=URN), timeout=5)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_update_and_delete(running: Running) -> None:
    updated = running.stub.Update(
        provider_pb2.UpdateRequest(
            id="id-1", urn=URN, olds=wire.encode({"endpoint": "old"}), news=wire.encode({**INPUTS, "listen": "new"})
        )
    )
    assert wire.decode(updated.properties)[0] == {"endpoint": "new"}
    running.stub.Delete(provider_pb2.DeleteRequest(id="id-1", urn=URN, properties=wire.encode({})))
    with pytest.raises(grpc.RpcError) as caught:
        running.stub.Delete(
            provider_pb2.DeleteRequest(id="id-1", urn=URN, properties=wire.encode({"endpoint": "stuck"}))
        )
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_progress_repeats_itself_and_cancel_stops_the_work(running: Running) -> None:
    pending = running.stub.Create.future(
        provider_pb2.CreateRequest(urn=URN, properties=wire.encode({**INPUTS, "listen": "slow"}))
    )
    time.sleep(3.5)
    running.stub.Cancel(empty_pb2.Empty())
    began = time.monotonic()
    assert pending.exception().code() == grpc.StatusCode.CANCELLED
    assert time.monotonic() - began < 2
    lines = [log.message for log in running.engine.logs if log.ephemeral]
    assert lines[0] == "starting"
    assert len(lines) >= 3
    assert lines[1] == "starting (2 s)"
    with pytest.raises(grpc.RpcError):  # nothing new begins after a cancel
        create(running, "slow")


def test_many_calls_wait_side_by_side(running: Running) -> None:
    pending = [
        running.stub.Create.future(
            provider_pb2.CreateRequest(urn=URN, properties=wire.encode({**INPUTS, "listen": "slow"}))
        )
        for _ in range(4)
    ]
    time.sleep(0.5)
    answered = threading.Event()
    running.stub.Read.future(provider_pb2.ReadRequest(id="gone", urn=URN)).add_done_callback(
        lambda _: answered.set()
    )
    assert answered.wait(3)
    for call in pending:
        call.cancel()


def test_other_types_and_schema_versions_are_refused(running: Running) -> None:
    for method, request in (
        (running.stub.Delete, provider_pb2.DeleteRequest(urn=URN.replace("Edge", "Ledge"))),
        (running.stub.GetSchema, provider_pb2.GetSchemaRequest(version=7)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_default_diff_has_no_opinion_without_changes() -> None:
    assert Thing().diff(INPUTS, {}, dict(INPUTS)) == Diff()
