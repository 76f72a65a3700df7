# SPDX-License-Identifier: Apache-2.0
"""Every configuration that we generate passes Envoy's own validator; the image starts with one of them."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from cube_proxy import envoy
from cube_proxy.envoy_files import parse_versions
from cube_templates import render

TEMPLATES = Path(str(files("cube_templates"))) / "templates"


def view(found: Any, *, failed: frozenset[str] = frozenset()) -> envoy.View:
    return envoy.View("local", found, failed, 1 << 20, 1)


@pytest.fixture
def cases(make_tenant: Callable[..., Any], make_set: Callable[..., Any]) -> dict[str, envoy.View]:
    plain = make_tenant("acme", ("smollm2", "ns/model:tag-1.0"))
    revoked = make_tenant("beta", ("other",), revoked=["one", "two"])
    keyless = make_tenant("gamma", ())
    without = keyless.body()
    without["tokens"]["keys"] = []
    from cube_attestation import domains

    return {
        "nothing": view(None),
        "no domain": view(make_set()),
        "two": view(make_set(plain, revoked)),
        "failed": view(make_set(plain, revoked), failed=frozenset({"smollm2", "other"})),
        "keyless and modelless": view(domains.parse({"domains": [without]})),
    }


def test_envoy_accepts_every_configuration(tmp_path: Path, cases: dict[str, envoy.View]) -> None:
    """As static parts of the bootstrap: --mode validate does not read watched files."""
    for name, case in cases.items():
        bootstrap = json.loads(render("envoy/bootstrap.json", {"run": str(tmp_path)}))
        for kind in ("sds", "rds", "ecds"):
            (tmp_path / "envoy" / kind).mkdir(parents=True, exist_ok=True)
        manager = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        del manager["rds"]
        manager["route_config"] = envoy.routes(case)["resources"][0]  # type: ignore[index]
        del manager["route_config"]["@type"]
        check = envoy.token_check(case)["resources"][0]  # type: ignore[index]
        assert manager["http_filters"][0]["name"] == check["name"]
        manager["http_filters"][0] = {"name": check["name"], "typed_config": check["typed_config"]}
        for file in ("sds/tls.json", "rds/service.json", "ecds/token.json"):
            (tmp_path / "envoy" / file).write_text('{"resources":[]}')
        path = tmp_path / "bootstrap.json"
        path.write_text(json.dumps(bootstrap))
        command = ["envoy", "--mode", "validate", "-c", str(path), "-l", "error"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (name, done.stderr)


def test_the_image_starts_with_what_we_generate_for_no_lease() -> None:
    lines = (TEMPLATES / "units/tmpfiles.d/cube-proxy.conf").read_text().splitlines()
    first = {line.split()[1]: line.split(" - ", 1)[1] for line in lines if line.startswith("f ")}
    nothing = envoy.View("", None, frozenset(), 1, 1)
    assert json.loads(first["/run/cube/envoy/rds/service.json"]) == envoy.routes(nothing)
    assert json.loads(first["/run/cube/envoy/ecds/token.json"]) == envoy.token_check(nothing)
    assert json.loads(first["/run/cube/envoy/sds/tls.json"]) == {"resources": []}


def test_the_bootstrap_knows_every_variant_of_model_and_every_refusal() -> None:
    text = render("envoy/bootstrap.json", {})
    bootstrap = json.loads(text)
    manager = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    body = next(f for f in manager["http_filters"] if f["name"] == envoy.BODY_METADATA)
    rules = body["typed_config"]["request_rules"]["rules"]
    names = [rule["selectors"][0]["key"] for rule in rules]
    variants = {"".join(letters) for letters in itertools.product(*((c, c.upper()) for c in "model"))}
    assert set(names) == variants
    assert len(names) == len(variants)


def test_each_policy_has_its_answer(cases: dict[str, envoy.View]) -> None:
    bootstrap = render("envoy/bootstrap.json", {})
    policies: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict):
            policies.update(value.get("policies", {}))
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    for case in cases.values():
        collect(envoy.routes(case))
    assert len(policies) == 11
    for policy in policies:
        assert f"rbac_access_denied_matched_policy[{policy}]" in bootstrap


def test_the_management_listener_has_only_our_paths() -> None:
    bootstrap = json.loads(render("envoy/bootstrap.json", {}))
    service, management = bootstrap["static_resources"]["listeners"]
    manager = management["filter_chains"][0]["filters"][0]["typed_config"]
    matches = [route["match"] for route in manager["route_config"]["virtual_hosts"][0]["routes"]]
    assert {(match["headers"][0]["string_match"]["exact"], match["path"]) for match in matches} == {
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
        ("POST", "/attestation"),
        ("POST", "/attestation/activate"),
        ("GET", "/control/v1/state"),
        ("POST", "/control/v1/admit"),
        ("POST", "/control/v1/revoke"),
        ("PUT", "/control/v1/domains"),
    }
    assert "pipe" in bootstrap["admin"]["address"]
    assert [x["address"]["socket_address"]["port_value"] for x in (service, management)] == [8443, 8444]


def test_versions_of_envoys_statistics() -> None:
    text = 'a.b.version_text: "00ff"\nother: 1\nsds.tls.version_text: ""\n'
    assert parse_versions(text) == {"a.b.version_text": "00ff", "sds.tls.version_text": ""}
