# SPDX-License-Identifier: Apache-2.0
"""`LocalMachine`: a machine on this host, detached from the command that started it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cube_attestation import launch
from cube_attestation.launch import Model
from cube_images import volume
from cube_images.errors import ImageError
from cube_images.volume import Volume

from cube_stacks.ca import tpm_manufacturer
from cube_stacks.gate import utc_now
from cube_stacks.keys import open_key
from cube_stacks.launch import sign
from cube_stacks.local import accelerator, machine, qemu
from cube_stacks.local.machine import Boot
from cube_stacks.provider.base import UNKNOWN, Context, Diff, Failed, Properties, Resource, State, changes
from cube_stacks.provider.failures import explained

_FIRMWARE, _VARIABLES, _DISK = "OVMF_CODE.fd", "OVMF_VARS.fd", "disk.img"
_HERE_ONLY = frozenset({"imageDirectory"})  # where the same image lies makes no other machine


class LocalMachine(Resource):
    token = "cube-confidential:index:LocalMachine"  # noqa: S105
    refresh_before_update = True

    def check(self, inputs: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        problems = []
        if inputs["accelerator"] is not UNKNOWN and inputs["accelerator"] not in ("auto", "kvm", "tcg"):
            problems.append(("accelerator", "must be auto, kvm or tcg"))
        for name, low in (("cpus", 1), ("memoryMib", 512)):
            if inputs[name] is not UNKNOWN and inputs[name] < low:
                problems.append((name, f"must be at least {low}"))
        return inputs, problems

    def diff(self, old_inputs: Properties, old_outputs: Properties, inputs: Properties) -> Diff:  # noqa: ARG002
        changed = changes(old_inputs, inputs)
        return Diff(
            replaces=tuple(name for name in changed if name not in _HERE_ONLY),
            updates=tuple(name for name in changed if name in _HERE_ONLY),
        )

    def create(self, ctx: Context, inputs: Properties) -> State:
        environment, images = inputs["environment"], Path(inputs["imageDirectory"])
        with explained():
            for name in (_FIRMWARE, _VARIABLES, _DISK):
                if not (images / name).is_file():
                    raise Failed("FAILED_PRECONDITION", f"{images / name} is missing; build the image anew")
            ctx.progress("model volumes")
            volumes = _volumes(ctx, inputs["launch"]["models"])
            signed = sign(
                environment,
                inputs["launch"]["revision"],
                inputs["launch"]["hostnames"],
                _models(inputs["launch"]["models"], volumes),
                inputs["launch"]["limits"],
                open_key(inputs["controlKey"]),
            )
            try:
                chosen, words = accelerator.choose(inputs["accelerator"])
            except ValueError as error:
                raise Failed("FAILED_PRECONDITION", str(error)) from error
            ctx.progress(f"starting with {words}")
            if chosen == "tcg" and inputs["accelerator"] == "auto":
                ctx.warn(words)
            boot = Boot(
                firmware=images / _FIRMWARE,
                variables=images / _VARIABLES,
                image=images / _DISK,
                launch=launch.write_volume(signed.envelope),
                disks=[qemu.Disk(_serial(each), each.path) for each in _distinct(volumes)],
                cpus=inputs["cpus"],
                memory_mib=inputs["memoryMib"],
                accelerator=chosen,
            )
            maker = tpm_manufacturer(environment, utc_now())
            started = machine.start(environment, inputs["name"], boot, maker)
            if ctx.cancelled.is_set():
                started.stop()
                raise Failed("CANCELLED", "cancelled")
        outputs: Properties = {
            "instanceId": started.instance,
            "managementAddress": started.management_address,
            "serviceAddress": started.service_address,
            "launchDigest": signed.digest,
            "accelerator": started.accelerator,
            "console": str(started.console),
            "ekRoot": maker.root_spki,
        }
        return State(started.instance, outputs)

    def read(self, ctx: Context, id: str, inputs: Properties, outputs: Properties) -> State | None:  # noqa: ARG002
        found = _find(id, outputs)
        return State(id, outputs) if found is not None and found.alive() else None

    def update(self, ctx: Context, id: str, old_outputs: Properties, inputs: Properties) -> State:  # noqa: ARG002
        return State(id, old_outputs)

    def delete(self, ctx: Context, id: str, outputs: Properties) -> None:
        found = _find(id, outputs)
        if found is not None:
            ctx.progress("stopping the machine")
            with explained():
                found.remove()


def _find(id: str, outputs: Properties) -> machine.LocalMachine | None:
    """The machine of that id; a later instance in the same folder is another one."""
    found = machine.load(Path(outputs["console"]).parent) if "console" in outputs else None
    return found if found is not None and found.instance == id else None


def _volumes(ctx: Context, models: dict[str, dict[str, Any]]) -> dict[str, Volume]:
    """The volume of each model; the same reference is built once."""
    built: dict[str, Volume] = {}
    for name, model in models.items():
        reference = model["volume"]
        if reference not in built:
            try:
                built[reference] = volume.build(reference, on_tick=_ticker(ctx, name))
            except ImageError as error:
                raise Failed("FAILED_PRECONDITION", f"the volume of model {name}: {error}") from error
    return {name: built[model["volume"]] for name, model in models.items()}


def _ticker(ctx: Context, name: str) -> Callable[[], None]:
    def tick() -> None:
        ctx.progress(f"building the volume of model {name}")
        ctx.pause(0)

    return tick


def _models(models: dict[str, dict[str, Any]], volumes: dict[str, Volume]) -> dict[str, Model]:
    found = {}
    for name, model in models.items():
        each = volumes[name]
        found[name] = Model(model["backend"], each.root, each.hash_offset, each.size, _serial(each), each.file)
    return found


def _serial(each: Volume) -> str:
    return f"vol-{each.root[:16]}"  # virtio-blk takes 20 bytes


def _distinct(volumes: dict[str, Volume]) -> list[Volume]:
    return list({each.root: each for each in volumes.values()}.values())
