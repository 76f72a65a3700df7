# SPDX-License-Identifier: Apache-2.0
"""The models of the launch document: opened as verity volumes, tried by the canary, taken out when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from cube_attestation.claims import ModelClaim
from cube_attestation.errors import BadInput
from cube_attestation.launch import Model

from . import canary, ollama_store
from .disks import DiskError
from .log import log

OLLAMA_SOCKET = Path("/run/cube-ollama/adapter.sock")
VLLM_RUN = Path("/run/cube-vllm")
CANARY_RETRY_SECONDS = 0.25
CANARY_TIMEOUT_SECONDS = 300.0

Opener = Callable[[str, Model, Path], None]


def volume_name(model: Model) -> str:
    """The device-mapper name of a model's volume: two names of one root share it.

    A vLLM process is for one volume and has its socket as ``<volume's name>.sock`` in a folder of its own; it
    serves every name that the launch document has for that volume.
    """
    return f"cube-{model.root[:16]}"


class Models:
    """States by name (``absent``, ``opened``, ``ready``, ``failed``); ``failed`` is final for this boot."""

    def __init__(self, models: Mapping[str, Model], run: Path, opener: Opener) -> None:
        self._models = models
        self._run = run
        self._open = opener
        self.states = dict.fromkeys(models, "absent")
        self.changed: Callable[[], None] = lambda: None

    def claims(self) -> dict[str, ModelClaim]:
        """What the claims say of each model."""
        return {name: ModelClaim(model.root, self.states[name]) for name, model in self._models.items()}

    def failed(self) -> frozenset[str]:
        return frozenset(name for name, state in self.states.items() if state == "failed")

    def volumes(self) -> set[str]:
        """Device-mapper names of the volumes that are open."""
        return {
            volume_name(self._models[name]) for name, state in self.states.items() if state in ("opened", "ready")
        }

    def open_all(self) -> None:
        """Open every volume and tell Ollama's store of its models. Blocking. What does not open has failed."""
        opened: set[str] = set()
        for name, model in self._models.items():
            place = self._run / "volumes" / model.root
            try:
                if model.root not in opened:
                    self._open(volume_name(model), model, place)
                    opened.add(model.root)
                if model.backend == "ollama":
                    gguf = place / model.file
                    ollama_store.add(self._run / "ollama", name, gguf, ollama_store.read_sidecar(gguf))
                self.states[name] = "opened"
            except (DiskError, BadInput, OSError) as error:
                self._fail(name, str(error))

    def fail_volume(self, volume: str, why: str) -> None:
        """Take every model of ``volume`` out."""
        for name, model in self._models.items():
            if volume_name(model) == volume and self.states[name] != "failed":
                self._fail(name, why)
        self.changed()

    def _fail(self, name: str, why: str) -> None:
        self.states[name] = "failed"
        log(f"model {name} failed: {why}")

    async def try_all(self, ollama: Path, vllm: Path = VLLM_RUN) -> None:
        """Run the canary once on each opened volume, as soon as its backend answers: its names share the runner.

        ``ollama``: the adapter's socket; its models one by one, as they share a process. ``vllm``: folder of the
        sockets of its processes.
        """
        backends = {volume_name(model): model.backend for model in self._models.values()}
        opened = sorted(self.volumes())
        await asyncio.gather(
            self._try_each([volume for volume in opened if backends[volume] == "ollama"], ollama),
            *(self._try(volume, vllm / f"{volume}.sock") for volume in opened if backends[volume] == "vllm"),
        )

    async def _try_each(self, volumes: list[str], socket: Path) -> None:
        for volume in volumes:
            await self._try(volume, socket)

    async def _try(self, volume: str, socket: Path) -> None:
        """Ask until there is an answer: a slow start is no failure, another answer than the expected one is."""
        names = [name for name, model in self._models.items() if volume_name(model) == volume]
        name = names[0]
        why = ""
        while self.states[name] == "opened":
            try:
                answer = await canary.ask(socket, name, CANARY_TIMEOUT_SECONDS)
            except canary.NotYet as error:
                if why != str(error):
                    why = str(error)
                    log(f"model {name} does not answer yet: {why}")
                await asyncio.sleep(CANARY_RETRY_SECONDS)
                continue
            if self.states[name] != "opened":
                return  # a changed block was found meanwhile
            if canary.EXPECTED in answer:
                self.states.update(dict.fromkeys(names, "ready"))
                log(f"model {', '.join(names)} ready")
                self.changed()
            else:
                self.fail_volume(volume, "the canary's answer is not the expected one")
