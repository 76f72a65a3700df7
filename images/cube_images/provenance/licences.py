# SPDX-License-Identifier: Apache-2.0
"""The licence report of an image: what is under which licence, whose source has to be offered, and models."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from cube_images.errors import ImageError
from cube_images.provenance import spdx
from cube_images.provenance.inventory import Component, stated


def model_licence(name: str) -> str:
    """The SPDX expression of a model; raises `ImageError` for one whose licence nobody wrote down."""
    models = stated()["models"]
    if name not in models:
        raise ImageError(
            f"no licence is written down for the model {name!r}", "add it to licences.toml with where it stands"
        )
    licence: str = models[name]["licence"]
    return licence


def require_model(name: str, accepted: Collection[str] = ()) -> str:
    """The model's licence if it is an open one or among `accepted`; else `ImageError` says what to accept."""
    licence = model_licence(name)
    if not spdx.open_model(licence) and licence not in accepted:
        raise ImageError(
            f"the model {name!r} is under {licence}, which is not an open-source licence",
            f"read it, and accept it with acceptLicence: {licence}",
        )
    return licence


def _flat(components: Iterable[Component]) -> Iterator[Component]:
    for item in components:
        yield item
        yield from _flat(item.parts)


def report(components: Sequence[Component], models: Sequence[str]) -> dict[str, Any]:
    """The whole report as one JSON object."""
    rows = []
    for item in _flat(components):
        row = asdict(item)
        del row["parts"]
        rows.append(row)
    return {
        "version": 1,
        "components": rows,
        "models": [{"name": name, **stated()["models"][name]} for name in models if model_licence(name)],
    }


def lines(components: Sequence[Component], models: Sequence[str]) -> list[str]:
    """For people: how many components are under each licence, what could not be told, the offer of sources."""
    items = list(_flat(components))
    found = [f"{len(items)} components; under each licence, alone or with others:"]
    counts = Counter(name for item in items for name in spdx.identifiers(item.licence))
    found += [
        f"  {count:>4}  {name}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    if unclear := [item for item in items if item.licence == spdx.NOASSERTION]:
        found.append("licence not told by a machine-readable file; read the text")
        found += [f"  {item.name} {item.version}: {item.stated}" for item in unclear]
    offered = {item.source: item for item in items if item.needs_source}
    found.append(f"source that who passes the image on has to offer ({len(offered)})")
    found += [f"  {source}" for source in sorted(offered)]
    if any(item.name.startswith("nvidia-") for item in items):
        found.append(
            "NVIDIA's driver is in the image: a published image needs what NVIDIA's licence for customer use of"
            " software says of redistribution"
        )
    found += [f"model {name}: {model_licence(name)} ({stated()['models'][name]['from']})" for name in models]
    return found
