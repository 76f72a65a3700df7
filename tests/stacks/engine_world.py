# SPDX-License-Identifier: Apache-2.0
"""A provider process for the engine's tests: two of our types over a file, so that a test decides how the world is.

`world.json` beside it: {"exists": {id: endpoint}, "refuse": reason or "", "sick": [reasons], "slow": seconds}.
What was called is added to `calls.txt`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from cube_stacks.provider.base import Context, Failed, Properties, Resource, State, Unhealthy
from cube_stacks.provider.server import serve

HERE = Path(sys.argv[0]).parent


def world() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "world.json").read_text())
    return found


def change(**more: Any) -> None:
    (HERE / "world.json").write_text(json.dumps({**world(), **more}))


def called(what: str) -> None:
    with (HERE / "calls.txt").open("a") as file:
        file.write(what + "\n")


class Gate(Resource):
    """An Edge that exists when the world lets it, and is read before each update, as the attestation gate is."""

    token = "cube-confidential:index:Edge"
    refresh_before_update = True
    replace_on = frozenset({"hostname"})

    def create(self, ctx: Context, inputs: Properties) -> State:
        called("create")
        ctx.progress("knocking")
        end = time.monotonic() + world()["slow"]
        while time.monotonic() < end:
            ctx.pause(0.1)
        self._refused()
        change(exists={"edge-1": inputs["listen"]})
        return State("edge-1", {"endpoint": f"https://{inputs['listen']}", "ca": inputs["ca"]})

    def read(self, ctx: Context, id: str, inputs: Properties, outputs: Properties) -> State | None:
        called("read")
        if id not in world()["exists"]:
            return None
        if world()["sick"]:
            raise Unhealthy(id, outputs, world()["sick"])
        return State(id, outputs)

    def update(self, ctx: Context, id: str, old_outputs: Properties, inputs: Properties) -> State:
        called("update")
        self._refused()
        change(sick=[])
        return State(id, {**old_outputs, "endpoint": f"https://{inputs['listen']}"})

    def delete(self, ctx: Context, id: str, outputs: Properties) -> None:
        called("delete")
        change(exists={})

    def _refused(self) -> None:
        if world()["refuse"]:
            raise Failed("FAILED_PRECONDITION", world()["refuse"])


if __name__ == "__main__":
    raise SystemExit(serve([Gate()], "0.1.0", sys.argv[1:]))
