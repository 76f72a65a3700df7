# SPDX-License-Identifier: Apache-2.0
"""What a resource of our provider is: plain functions over plain data, without a word of gRPC.

`server` speaks the provider protocol and calls these. Property names are camelCase, as they are on the wire; values
are what JSON has (whole numbers arrive as `int`), and `UNKNOWN` stands for what only a later step of the run will
tell, which happens in previews alone.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

Code = Literal[
    "FAILED_PRECONDITION",  # the world is not as it must be; the message says what to do
    "DEADLINE_EXCEEDED",
    "INVALID_ARGUMENT",
    "UNAVAILABLE",
    "CANCELLED",
    "ABORTED",  # a bug of ours
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
]
"""Codes that the engine takes as "nothing happened". The remaining ones (UNKNOWN, INTERNAL, DATA_LOSS) would make
it mark the whole update as possibly corrupt, so no resource can use them."""


class Unknown:
    """A value that only a later step of the run will tell. There is one: `UNKNOWN`."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()

Properties = dict[str, Any]


class Failed(Exception):
    """The operation failed and left nothing behind: the engine stores nothing new, and stops dependants."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message


class Unhealthy(Exception):
    """It exists but is not well: the engine keeps `outputs`, shows `reasons`, and updates it next time."""

    def __init__(self, id: str, outputs: Properties, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.id = id
        self.outputs = outputs
        self.reasons = list(reasons)


@dataclass(frozen=True)
class State:
    """A resource as it is now. `id` is never empty."""

    id: str
    outputs: Properties


@dataclass(frozen=True)
class Diff:
    """Names of the inputs that changed: those that need a new resource, and those that an update can change."""

    replaces: tuple[str, ...] = ()
    updates: tuple[str, ...] = ()


@dataclass
class Context:
    """What an operation knows of the run around it.

    `progress` shows one status line beside the resource, replaced by the next; say it as often as you like, the
    server repeats the last one with the seconds gone by, so that no wait is silent. `warn` stays on the screen.
    Long work looks at `cancelled` at least once a second and then raises `Failed("CANCELLED", …)`.
    """

    urn: str
    timeout_s: float | None
    progress: Callable[[str], None]
    warn: Callable[[str], None]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def pause(self, seconds: float) -> None:
        """Sleep, unless the user cancels: then raise."""
        if self.cancelled.wait(seconds):
            raise Failed("CANCELLED", "cancelled")


class Resource(ABC):
    """One resource type. Instances hold no state of a resource: one serves all calls, from several threads."""

    token: ClassVar[str]  # e.g. "cube-confidential:index:LocalMachine"
    refresh_before_update: ClassVar[bool] = False  # every `up` calls `read` first
    replace_on: ClassVar[frozenset[str]] = frozenset()  # inputs that `diff` answers with a replacement

    def check(self, inputs: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        """Inputs with defaults filled in, and what is wrong as (property, reason).

        Presence and types were checked against the schema before. Values may be `UNKNOWN`.
        """
        return inputs, []

    def diff(self, old_inputs: Properties, old_outputs: Properties, inputs: Properties) -> Diff:  # noqa: ARG002
        """What changed. Here: by inputs alone, `replace_on` names those that need a new resource."""
        changed = changes(old_inputs, inputs)
        return Diff(
            replaces=tuple(name for name in changed if name in self.replace_on),
            updates=tuple(name for name in changed if name not in self.replace_on),
        )

    def preview(self, inputs: Properties) -> Properties:  # noqa: ARG002
        """Outputs that can be told before anything is done; the others are shown as unknown."""
        return {}

    def preview_note(self, inputs: Properties) -> str:  # noqa: ARG002
        """What a preview says beside the resource, e.g. why outputs are unknown; empty: nothing."""
        return ""

    @abstractmethod
    def create(self, ctx: Context, inputs: Properties) -> State:
        """Make it. Raises `Failed` (nothing is stored) or `Unhealthy` (stored, and updated next time)."""

    @abstractmethod
    def read(self, ctx: Context, id: str, inputs: Properties, outputs: Properties) -> State | None:
        """As it is now, None when it is gone. Also called by `pulumi preview` and before `destroy`: be quick.

        May raise `Unhealthy`; so does the server for a `Failed`, which could otherwise not be destroyed.
        """

    @abstractmethod
    def update(self, ctx: Context, id: str, old_outputs: Properties, inputs: Properties) -> State:
        """Bring it to `inputs`, keeping `id`. Also called without a change after `Unhealthy`."""

    @abstractmethod
    def delete(self, ctx: Context, id: str, outputs: Properties) -> None:
        """Remove it; what is gone already is no error."""


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of properties that differ, sorted. `UNKNOWN` differs from everything."""
    return tuple(
        sorted(name for name in {*old, *new} if old.get(name) != new.get(name) or holds_unknown(new.get(name)))
    )


def holds_unknown(value: Any) -> bool:
    """Whether `UNKNOWN` is anywhere in a value."""
    if isinstance(value, Mapping):
        return any(holds_unknown(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(holds_unknown(item) for item in value)
    return value is UNKNOWN
