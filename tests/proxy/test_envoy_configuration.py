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
from cube_attestation import domains
from cube_attestation.launch import Model
from cube_proxy import envoy, rules
from cube_proxy.envoy_files import parse_versions
from cube_templates import render

TEMPLATES = Path(str(files("cube_templates"))) / "templates"


MODELS = {
    name: Model(backend, digit * 64, 4096, 8192, "m", "file")
    for name, backend, digit in (
        ("smollm2", "ollama", "a"),
        ("ns/model:tag-1.0", "ollama", "b"),
        ("other", "ollama", "c"),
        ("large", "vllm", "d"),
    )
}


def view(found: Any, *, failed: frozenset[str] = frozenset()) -> envoy.View:
    return envoy.View("local", found, failed, 1 << 20, 1, MODELS, b"salt")


@pytest.fixture
def cases(
    make_tenant: Callable[..., Any], make_set: Callable[..., Any], make_issuer: Callable[..., Any]
) -> dict[str, envoy.View]:
    plain = make_tenant("acme", ("smollm2", "ns/model:tag-1.0"))
    revoked = make_tenant("beta", ("other",), revoked=["one", "two"])
    keyless = make_tenant("gamma", ())
    without = keyless.body()
    without["tokens"]["keys"] = []
    login = make_issuer("https://login.example/acme")
    limited = {"max_body_bytes": 2048, "requests_per_minute": 7, "concurrent_requests": 3}
    full = make_tenant(
        "delta", ("mine=large", "large", "chat=smollm2"), issuers=[login], limits=limited, revoked=["x"]
    )
    only_oidc = {**without, "models": ["large"], "issuers": [login.body()]}
    many = make_tenant("many", tuple(f"a-rather-long-name-of-a-model-{i}=smollm2" for i in range(64)))
    return {
        "nothing": view(None),
        "no domain": view(make_set()),
        "two": view(make_set(plain, revoked)),
        "failed": view(make_set(plain, revoked), failed=frozenset({"smollm2", "other"})),
        "keyless and modelless": view(domains.parse({"domains": [without]})),
        "everything": view(make_set(full, many), failed=frozenset({"smollm2"})),
        "an issuer only": view(domains.parse({"domains": [only_oidc]})),
    }


def manager_of(bootstrap: dict[str, Any], port: int = 0) -> dict[str, Any]:
    chain = bootstrap["static_resources"]["listeners"][port]["filter_chains"][0]
    found: dict[str, Any] = chain["filters"][0]["typed_config"]
    return found


def test_envoy_accepts_every_configuration(tmp_path: Path, cases: dict[str, envoy.View]) -> None:
    """As static parts of the bootstrap: --mode validate does not read watched files."""
    for name, case in cases.items():
        bootstrap = json.loads(render("envoy/bootstrap.json", {"run": str(tmp_path)}))
        manager = manager_of(bootstrap)
        del manager["rds"]
        manager["route_config"] = envoy.routes(case)["resources"][0]  # type: ignore[index]
        del manager["route_config"]["@type"]
        for value in (envoy.token_check(case), envoy.limits(case)):
            extension = value["resources"][0]  # type: ignore[index]
            (place,) = (i for i, f in enumerate(manager["http_filters"]) if f["name"] == extension["name"])
            manager["http_filters"][place] = {key: extension[key] for key in ("name", "typed_config")}
        del bootstrap["dynamic_resources"]
        for cluster in envoy.clusters(case)["resources"]:  # type: ignore[attr-defined]
            del cluster["@type"]
            bootstrap["static_resources"]["clusters"].append(cluster)
        (tmp_path / "envoy/sds").mkdir(parents=True, exist_ok=True)
        (tmp_path / "envoy/sds/tls.json").write_text('{"resources":[]}')
        path = tmp_path / "bootstrap.json"
        path.write_text(json.dumps(bootstrap))
        command = ["envoy", "--mode", "validate", "-c", str(path), "-l", "error"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (name, done.stderr)


def test_clusters_of_the_routes_in_force_stay_until_the_next_change(cases: dict[str, envoy.View]) -> None:
    def names(*views: envoy.View) -> set[str]:
        return {cluster["name"] for cluster in envoy.clusters(*views)["resources"]}  # type: ignore[attr-defined]

    limited, plain = cases["everything"], cases["two"]
    (id, _) = (domain.id for domain in limited.served())
    vllm = "cube-" + "d" * 16
    assert names(plain) == {vllm}
    assert names(limited) == {vllm, f"{vllm}/{id}", f"ollama/{id}"}
    assert names(plain, limited) == names(limited)


def test_the_image_starts_with_what_we_generate_for_no_lease() -> None:
    lines = (TEMPLATES / "units/tmpfiles.d/cube-proxy.conf").read_text().splitlines()
    first = {line.split()[1]: line.split(" - ", 1)[1] for line in lines if line.startswith("f ")}
    nothing = envoy.View("", None, frozenset(), 1, 1)
    assert json.loads(first["/run/cube/envoy/rds/service.json"]) == envoy.routes(nothing)
    assert json.loads(first["/run/cube/envoy/ecds/token.json"]) == envoy.token_check(nothing)
    assert json.loads(first["/run/cube/envoy/ecds/limits.json"]) == envoy.limits(nothing)
    assert json.loads(first["/run/cube/envoy/cds/clusters.json"]) == envoy.clusters(nothing)
    assert json.loads(first["/run/cube/envoy/sds/tls.json"]) == {"resources": []}


def test_the_bootstrap_knows_every_variant_of_model_and_every_refusal() -> None:
    text = render("envoy/bootstrap.json", {})
    bootstrap = json.loads(text)
    manager = manager_of(bootstrap)
    body = next(f for f in manager["http_filters"] if f["name"] == rules.BODY_METADATA)
    selected = body["typed_config"]["request_rules"]["rules"]
    names = [rule["selectors"][0]["key"] for rule in selected]
    variants = {"".join(letters) for letters in itertools.product(*((c, c.upper()) for c in "model"))}
    assert set(names) == variants | {"name", "cache_salt"}
    assert len(names) == len(variants) + 2


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
    assert len(policies) == 9
    collect(json.loads(bootstrap))
    assert len(policies) == 14
    for policy in policies:
        assert f"rbac_access_denied_matched_policy[{policy}]" in bootstrap


def test_every_call_needs_one_scope_that_a_token_can_have() -> None:
    """The allow-list's regular expressions and the scopes' conditions are of one table; here they are compared."""
    manager = manager_of(json.loads(render("envoy/bootstrap.json", {})))
    filters = {entry["name"]: entry.get("typed_config", {}) for entry in manager["http_filters"]}
    policies = filters[envoy.PATH_FILTER]["rules"]["policies"]
    rule = policies["1.path"]["permissions"][0]["not_rule"]["header"]["string_match"]["safe_regex"]["regex"]
    paths = rule.partition("36}/(?:")[2].removesuffix(")")
    for rest in ("(?:/[A-Za-z0-9][A-Za-z0-9._:/-]*)?", "(?:[?][A-Za-z0-9=&%:-]*)?"):
        paths = paths.replace(rest, "")
    scopes: dict[str, list[str]] = {}
    for permission in filters[envoy.SCOPE_FILTER]["rules"]["policies"]["6.scope"]["permissions"]:
        where, lacks = permission["and_rules"]["rules"]
        token = lacks["not_rule"]["or_rules"]["rules"][0]["sourced_metadata"]["metadata_matcher"]["value"]
        scope = token["list_match"]["one_of"]["string_match"]["exact"]
        for matcher in where["or_rules"]["rules"]:
            match = matcher["header"]["string_match"]
            scopes.setdefault(next(iter(match.values())).removeprefix("/"), []).append(scope)
    assert set(scopes) == set(paths.split("|"))
    assert all(len(found) == 1 for found in scopes.values())
    assert {found for (found,) in scopes.values()} <= set(domains.SCOPES)


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
