# SPDX-License-Identifier: Apache-2.0
"""`Edge`: a layer-4 route of this host to the machines that are ready."""

from __future__ import annotations

from pathlib import Path

from cube_stacks import edge, records
from cube_stacks.provider.base import UNKNOWN, Context, Failed, Properties, Resource, State, Unhealthy
from cube_stacks.provider.failures import explained


class Edge(Resource):
    token = "cube-confidential:index:Edge"  # noqa: S105
    refresh_before_update = True

    def check(self, inputs: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        addresses = [("listen", inputs["listen"])]
        if inputs["members"] is not UNKNOWN:
            for number, member in enumerate(inputs["members"]):
                if member is not UNKNOWN:
                    addresses += [(f"members[{number}].{name}", address) for name, address in member.items()]
        problems = [(name, edge.check_address(address)) for name, address in addresses if address is not UNKNOWN]
        return inputs, [(name, problem) for name, problem in problems if problem]

    def preview(self, inputs: Properties) -> Properties:
        return {} if UNKNOWN in (inputs["listen"], inputs["hostname"]) else {"endpoint": _endpoint(inputs)}

    def create(self, ctx: Context, inputs: Properties) -> State:
        return self._apply(ctx, inputs)

    def update(self, ctx: Context, id: str, old_outputs: Properties, inputs: Properties) -> State:  # noqa: ARG002
        return self._apply(ctx, inputs)

    def read(self, ctx: Context, id: str, inputs: Properties, outputs: Properties) -> State | None:
        if not inputs:
            raise Failed("INVALID_ARGUMENT", "an edge can't be imported; run pulumi up")
        return State(id, outputs) if edge.find(_folder(ctx)) else None

    def delete(self, ctx: Context, id: str, outputs: Properties) -> None:  # noqa: ARG002
        environment, name = _names(ctx)
        with explained():
            edge.stop(_folder(ctx))
        records.remove(environment, "edges", name)

    def _apply(self, ctx: Context, inputs: Properties) -> State:
        environment, name = _names(ctx)
        members = tuple(
            edge.Member(member["serviceAddress"], member["managementAddress"]) for member in inputs["members"]
        )
        wanted = edge.Edge(inputs["listen"], members, inputs["ca"], inputs["hostname"])
        outputs = {"endpoint": _endpoint(inputs)}
        with explained():
            edge.apply(_folder(ctx), wanted)
        records.keep(environment, "edges", name, inputs, outputs)
        limit = min(edge.READY_S, ctx.timeout_s or edge.READY_S)
        if why := edge.wait_for_member(_folder(ctx), members, limit, ctx.progress, ctx.pause):
            words = f"edge.no_member_ready: none of {len(members)} members is ready: {why}"
            raise Unhealthy(f"{environment}/{name}", outputs, [words])
        return State(f"{environment}/{name}", outputs)


def _names(ctx: Context) -> tuple[str, str]:
    return records.environment_of(ctx.urn), records.name_of(ctx.urn)


def _folder(ctx: Context) -> Path:
    environment, name = _names(ctx)
    return records.folder(environment, "edges", name)


def _endpoint(inputs: Properties) -> str:
    return f"https://{inputs['hostname']}:{inputs['listen'].rpartition(':')[2]}"
