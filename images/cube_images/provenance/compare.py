# SPDX-License-Identifier: Apache-2.0
"""What differs between two images: inputs, packages, programs, UKI; which measurements move with it, and why."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cube_attestation import dsse

from cube_images import pe, predict
from cube_images.platforms import gcp
from cube_images.platforms.registers import fold
from cube_images.provenance.described import Described

_INPUTS = ("flavour", "definition", "lock")
_RESULTS = ("image", "root", "uki", "uki_authenticode")


@dataclass(frozen=True)
class Change:
    """One thing before and after; "" where there is none."""

    name: str
    before: str
    after: str

    def line(self) -> str:
        """For people: `name 1.0 -> 1.1`."""
        return f"{self.name} {_short(self.before) or 'absent'} -> {_short(self.after) or 'absent'}"


@dataclass(frozen=True)
class Register:
    """A register of the prediction: `causes` are the extends that differ, in words; none, and it stays."""

    name: str
    before: str
    after: str
    causes: tuple[str, ...]

    @property
    def moves(self) -> bool:
        """Whether its value differs."""
        return self.before != self.after


@dataclass(frozen=True)
class Difference:
    """All that differs. `files` is empty unless the root file systems were compared."""

    inputs: tuple[Change, ...]
    packages: tuple[Change, ...]
    binaries: tuple[Change, ...]
    sections: tuple[Change, ...]
    command_line: tuple[Change, ...]
    files: tuple[Change, ...]
    results: tuple[Change, ...]
    registers: tuple[Register, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs that was looked at."""
        return not any(
            (self.inputs, self.packages, self.binaries, self.sections, self.command_line, self.files, self.results)
        ) and not any(register.moves for register in self.registers)

    def to_json(self) -> dict[str, Any]:
        """As one JSON object; of the registers those that stay are there too, with no causes."""
        value = asdict(self)
        for row, register in zip(value["registers"], self.registers, strict=True):
            row["moves"] = register.moves
        return {"version": 1, "same": self.same, **value}

    def lines(self) -> list[str]:
        """For people, most telling first."""
        if self.same:
            return ["the two images are the same"]
        found: list[str] = []
        for title, changes in (
            ("inputs", self.inputs),
            ("Debian packages", self.packages),
            ("programs", self.binaries),
            ("command line", self.command_line),
            ("sections of the UKI", self.sections),
            ("files of the root", self.files),
            ("results", self.results),
        ):
            if changes:
                found += [f"{title} ({len(changes)} changed)", *(f"  {change.line()}" for change in changes)]
        found.append("measurements")
        for register in self.registers:
            if register.moves:
                found += [f"  {register.name} moves", *(f"    {cause}" for cause in register.causes)]
        if staying := [register.name for register in self.registers if not register.moves]:
            found.append(f"  unchanged: {', '.join(staying)}")
        return found


def _short(text: str) -> str:
    """Digests cut to what tells them apart."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", text)


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    """What differs between two mappings, by name."""
    return tuple(
        Change(name, before.get(name, ""), after.get(name, ""))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    )


def _packages(before: Iterable[Mapping[str, str]], after: Iterable[Mapping[str, str]]) -> tuple[Change, ...]:
    def table(rows: Iterable[Mapping[str, str]], value: Callable[[Mapping[str, str]], str]) -> dict[str, str]:
        return {f"{row['name']}:{row['architecture']}": value(row) for row in rows}

    versions = changes(table(before, lambda row: row["version"]), table(after, lambda row: row["version"]))
    # The same version with other bytes is what a reviewer must not miss.
    rebuilt = changes(
        table(before, lambda row: f"sha256:{row['sha256']}"), table(after, lambda row: f"sha256:{row['sha256']}")
    )
    named = {change.name for change in versions}
    return tuple(sorted((*versions, *(item for item in rebuilt if item.name not in named)), key=lambda c: c.name))


def _firmware(payload: Mapping[str, Any]) -> dict[str, str]:
    return {f"firmware {name}": value for name, value in payload["firmware"].items()}


def _causes(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The extends of one register that differ, aligned by what they are."""
    key = [[(row["type"], row["what"], row["from"]) for row in rows] for rows in (before, after)]
    found: list[str] = []
    for kind, a1, a2, b1, b2 in difflib.SequenceMatcher(None, key[0], key[1], autojunk=False).get_opcodes():
        if kind == "equal":
            found += [
                f"{old['what']} changed, from {old['from']}"
                for old, new in zip(before[a1:a2], after[b1:b2], strict=True)
                if old.get("digest", old.get("sha256")) != new.get("digest", new.get("sha256"))
            ]
            continue
        found += [f"{row['what']} is no longer measured, from {row['from']}" for row in before[a1:a2]]
        found += [f"{row['what']} is measured in addition, from {row['from']}" for row in after[b1:b2]]
    return tuple(found)


def _registers(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Register, ...]:
    values = [payload["reference"]["pcrs"]["sha256"] for payload in (before, after)]
    found = []
    for pcr in sorted(values[0].keys() | values[1].keys(), key=int):
        rows = [
            [row for row in payload["reference"]["events"] if row["pcr"] == int(pcr)] for payload in (before, after)
        ]
        found.append(
            Register(f"PCR {pcr}", values[0].get(pcr, ""), values[1].get(pcr, ""), _causes(rows[0], rows[1]))
        )
    return tuple(found)


def _trust_domain(before: Described, after: Described) -> tuple[Register, ...]:
    """RTMR1 and RTMR2 of a trust domain on Google Cloud: the same inputs, SHA-384, in other registers."""
    sides: list[dict[str, list[predict.Measurement]]] = []
    for image in (before, after):
        uki, head = predict.parts(image.file("uki.efi").parent)
        found = predict.measurements(uki, head, "sha384")
        sides.append({"RTMR1": gcp.rtmr1(found), "RTMR2": gcp.rtmr2(found)})
    rows = [{name: [_event(item) for item in events] for name, events in side.items()} for side in sides]
    return tuple(
        Register(
            f"{name} (gcp)",
            fold("sha384", sides[0][name]).hex(),
            fold("sha384", sides[1][name]).hex(),
            _causes(rows[0][name], rows[1][name]),
        )
        for name in ("RTMR1", "RTMR2")
    )


def _event(item: predict.Measurement) -> dict[str, str]:
    return {"type": item.type, "what": item.what, "from": item.source, "digest": item.digest.hex()}


def _uki(image: Described) -> dict[str, bytes]:
    return pe.parse(image.file("uki.efi").read_bytes(), "the UKI").sections


def _section_digests(sections: Mapping[str, bytes]) -> dict[str, str]:
    return {name: f"{dsse.digest(content)} ({len(content)} bytes)" for name, content in sections.items()}


def _words(sections: Mapping[str, bytes]) -> dict[str, str]:
    """The command line as name → value, so that a changed root hash shows as itself."""
    words = sections.get(".cmdline", b"").rstrip(b"\0").decode(errors="replace").split()
    return {name: value or "set" for name, _, value in (word.partition("=") for word in words)}


def compare(before: Described, after: Described, files: tuple[Change, ...] = ()) -> Difference:
    """What differs from `before` to `after`; sections and command line only where both have their UKI at hand."""
    old, new = before.payload, after.payload
    sections: tuple[Change, ...] = ()
    command_line: tuple[Change, ...] = ()
    trust_domain: tuple[Register, ...] = ()
    if before.has("uki.efi", "disk.img") and after.has("uki.efi", "disk.img"):
        trust_domain = _trust_domain(before, after)
    if before.has("uki.efi") and after.has("uki.efi"):
        parts = _uki(before), _uki(after)
        sections = changes(_section_digests(parts[0]), _section_digests(parts[1]))
        command_line = changes(_words(parts[0]), _words(parts[1]))
    return Difference(
        inputs=changes(
            {name: old[name] for name in _INPUTS} | _firmware(old),
            {name: new[name] for name in _INPUTS} | _firmware(new),
        ),
        packages=_packages(old["packages"], new["packages"]),
        binaries=changes(
            {row["path"]: f"sha256:{row['sha256']}" for row in old["binaries"]},
            {row["path"]: f"sha256:{row['sha256']}" for row in new["binaries"]},
        ),
        sections=sections,
        command_line=command_line,
        files=files,
        results=changes({name: old[name] for name in _RESULTS}, {name: new[name] for name in _RESULTS}),
        registers=_registers(old, new) + trust_domain,
    )
