# SPDX-License-Identifier: Apache-2.0
"""``attestation collateral fetch``: bundles without their collateral, completed from real servers, verify again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fake_azure
import fake_nvidia
import fake_snp
import fake_tdx
import fakepki
import pytest
import whole_bundles
from cube_attestation import bundle as bundles
from cube_attestation.bundle import Bundle
from cube_attestation.cli import main
from cube_attestation.cmw import Collection
from cube_attestation.collateral import sources, store
from cube_attestation.nvidia import abi as nvidia_abi
from cube_attestation.tokens import items as tokens
from cube_attestation.verifier import verify
from fake_services import FakeServices, ok, serving
from whole_bundles import Whole

AT = "2026-11-24T12:00:00Z"
DRIVER = f"NV_GPU_DRIVER_GH100_{fake_nvidia.DRIVER}"
VBIOS = "NV_GPU_VBIOS_1010_0200_882_9600AB0001"
RIMS = {DRIVER: fake_nvidia.driver_rim(), VBIOS: fake_nvidia.vbios_rim()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "cache" / "cube-confidential" / "collateral"


def bare(whole: Whole, *kept: str) -> Bundle:
    """The bundle without its collateral; tokens without their keys."""
    items = {k: v for k, v in whole.bundle.evidence.items.items() if k not in store.LABELS or k in kept}
    given = whole.bundle.evidence.items.get("tokens")
    if given is not None:
        emptied = [replace(one, keys=b'{"keys":[]}') for one in tokens.decode(given.value)]
        items["tokens"] = replace(given, value=tokens.encode(emptied))
    return Bundle(Collection(items))


def write(folder: Path, whole: Whole, bundle: Bundle | None = None) -> None:
    (folder / "bundle.json").write_bytes(bundles.dump(bundle or bare(whole)))
    (folder / "policy.toml").write_text(whole.toml)


def fetch(folder: Path, services: FakeServices, *more: str) -> int:
    arguments = ["collateral", "fetch", str(folder / "bundle.json"), "--policy", str(folder / "policy.toml")]
    return main([*arguments, "--at", AT, "--output", str(folder / "full.json"), *services.options(), *more])


def full(folder: Path) -> Bundle:
    return bundles.load((folder / "full.json").read_bytes())


def passes(bundle: Bundle, whole: Whole) -> bool:
    verdict = verify(bundle, whole.policy, now=fakepki.NOW)
    if not verdict.passed:
        print([reason for item in verdict.items for reason in item.reasons])
    return verdict.passed


def snp_services(services: FakeServices, **changes: object) -> None:
    services.amd(fake_snp.FakeSnp().but(**changes))


def gpu_services(services: FakeServices, **given: object) -> None:
    services.nvidia(fake_nvidia.FakeDevice(), rims=RIMS, **given)
    services.keys("/.well-known/jwks.json", "nras")
    services.keys("/certs", "ita")


def azure_services(services: FakeServices) -> None:
    machine = fake_azure.FakeAzure()
    services.amd(machine.machine())
    services.azure(machine)


def azure_tdx_services(services: FakeServices) -> None:
    services.intel(fake_tdx.FakeTdx())
    services.azure(fake_azure.FakeAzure(tee="tdx"))


def tdx_services(services: FakeServices) -> None:
    services.intel(fake_tdx.FakeTdx())


def azure_kept(whole: Whole) -> Bundle:
    """Azure machines bring the AK's certificate themselves, without its issuers."""
    found = bare(whole, "azure-ak-chain")
    own = whole.bundle.evidence.items["azure-ak-chain"]
    first = own.value.split(b"-----END CERTIFICATE-----")[0] + b"-----END CERTIFICATE-----\n"
    return Bundle(Collection({**found.evidence.items, "azure-ak-chain": replace(own, value=first)}))


WHOLE = {
    "snp": (whole_bundles.snp, snp_services, bare),
    "tdx": (whole_bundles.tdx, tdx_services, bare),
    "gpu": (whole_bundles.gpu, gpu_services, bare),
    "azure": (whole_bundles.azure, azure_services, azure_kept),
    "azure_tdx": (whole_bundles.azure_tdx, azure_tdx_services, azure_kept),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_bundle_without_collateral_is_completed_and_then_verifies(name: str, tmp_path: Path) -> None:
    make, prepare, strip = WHOLE[name]
    whole = make()
    start = strip(whole)
    if name == "gpu":
        start = Bundle(
            Collection({**start.evidence.items, **{"ak-chain": whole.bundle.evidence.items["ak-chain"]}})
        )
    write(tmp_path, whole, start)
    assert not verify(start, whole.policy, now=fakepki.NOW).passed
    with serving(FakeServices()) as services:
        prepare(services)
        assert fetch(tmp_path, services) == 0
        asked = len(services.seen)
        assert passes(full(tmp_path), whole)
        # all of it is in the cache now
        (tmp_path / "full.json").unlink()
        assert fetch(tmp_path, services, "--offline") == 0
        assert len(services.seen) == asked
    assert passes(full(tmp_path), whole)
    noted = sources.read(full(tmp_path).evidence)
    assert len(noted.sources) >= asked
    assert all(one.source.startswith("http://127.0.0.1:") for one in noted.sources)
    assert bundles.load((tmp_path / "bundle.json").read_bytes()) == start  # untouched
