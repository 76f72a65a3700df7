# SPDX-License-Identifier: Apache-2.0
"""Write mkosi's configuration from the flavour and run the locked mkosi."""

import shutil
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from cube_templates import render

from cube_images import debian, sandbox
from cube_images.flavour import Flavour
from cube_images.lock import Lock
from cube_images.paths import cache_dir
from cube_images.run import run

# What a template may ask for beside the flavour's data: where things are in one build.
PLACES = ("repository", "output", "initrd", "extra", "tools", "sandbox", "package_cache", "cache")


def templates() -> list[str]:
    """Paths below the mkosi folder of cube_templates, the configuration of a build."""
    root = Path(str(files("cube_templates") / "templates" / "mkosi"))
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.conf"))


def values(definition: Flavour, **places: Path) -> dict[str, object]:
    """What the templates need: the flavour's data, and where things are in this build."""
    command_line = list(definition.image["command_line"])
    if address := definition.image.get("address"):
        command_line.append(f"cube.address={address}")
    return {
        "suite": definition.suite,
        "image": definition.image,
        "packages": definition.debian["image"].packages,
        "command_line": command_line,
        **places,
    }


def build(
    definition: Flavour,
    lock: Lock,
    *,
    tools: Path,
    initrd: Path,
    extra: Path,
    work: Path,
    cache: Path,
    on_line: Callable[[str], None] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> Path:
    """Build the disk image below `work` and return the folder with mkosi's results.

    `extra` is laid over the packages; `cache` keeps the layer of packages for the next build.
    """
    repository = debian.repository(lock.debian["image"], lock.suite, lock.digest("image"))
    configuration, output, sandbox_tree = work / "mkosi", work / "output", work / "sandbox"
    packages = cache_dir() / "mkosi" / "packages"
    sources = sandbox_tree / "etc/apt/sources.list.d/mkosi.sources"
    for folder in (configuration, output, sources.parent, packages, cache, work / "workspace"):
        folder.mkdir(parents=True, exist_ok=True)
    sources.write_text(f"Types: deb\nURIs: file://{quote(str(repository))}\nSuites: ./\nTrusted: yes\n")
    places = {
        "repository": repository,
        "output": output,
        "initrd": initrd,
        "extra": extra,
        "tools": tools,
        "sandbox": sandbox_tree,
        "package_cache": packages,
        "cache": cache,
    }
    for name in templates():
        target = configuration / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(f"mkosi/{name}", values(definition, **places)))
    run(
        [
            *(sys.executable, "-P", "-m", "mkosi", "--directory", configuration),
            *("--workspace-directory", work / "workspace", "--force", "build"),
        ],
        env={"PYTHONPATH": str(sandbox.mkosi(lock)), "PYTHONDONTWRITEBYTECODE": "1"},
        root=True,
        on_line=on_line,
        on_tick=on_tick,
    )
    shutil.rmtree(work / "workspace", ignore_errors=True)
    return output
