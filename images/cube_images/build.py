# SPDX-License-Identifier: Apache-2.0
"""Build an image from its lock, step by step, into the cache; the same definition is never built twice."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cube_attestation import dsse, jcs
from cube_templates import render

from cube_images import debian, flavour, initrd, lock, manifest, mkosi, ollama, resolve, rootfs, trees, wheels
from cube_images.errors import ImageError
from cube_images.flavour import Flavour
from cube_images.lock import Lock
from cube_images.paths import cache_dir, entry, require_space
from cube_images.run import is_root, run
from cube_images.wheels import sha256_file

STEPS = (
    "Debian packages",
    "wheels",
    "build tools",
    "Ollama",
    "initrd",
    "guest code and configuration",
    "root file system and disk",
    "predicted measurements",
    "manifest",
)
_PAYLOAD = "payload.json"
# Modules that can't change a byte of an image.
_BESIDE = {"cli", "gotoolchain", "keys", "verification", "verity", "volume"}
_FIRMWARE = {"OVMF_CODE.fd": "OVMF_CODE_4M.fd", "OVMF_VARS.fd": "OVMF_VARS_4M.fd"}
_CACHE_SPACE = 4_000_000_000
_IMAGE_SPACE = 1_000_000_000
_WORK_SPACE = 2_000_000_000
_TICK_SECONDS = 1.5
_KEPT_IMAGES = 8


@dataclass(frozen=True)
class Progress:
    """Where a build is: `step` of `steps` (from 1), its name, a detail (may be empty), seconds since the start."""

    step: int
    steps: int
    what: str
    detail: str
    seconds: float

    def line(self) -> str:
        """One line for people."""
        detail = f": {self.detail}" if self.detail else ""
        return f"building image {self.step}/{self.steps}: {self.what}{detail}"


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Image:
    """A built image in its folder. `payload` is the manifest's payload."""

    folder: Path
    payload: Mapping[str, Any]

    @property
    def disk(self) -> Path:
        """The disk image."""
        return self.folder / "disk.img"

    @property
    def uki(self) -> Path:
        """The unified kernel image, as on the disk's EFI partition."""
        return self.folder / "uki.efi"

    @property
    def firmware_code(self) -> Path:
        """OVMF's code, as locked."""
        return self.folder / "OVMF_CODE.fd"

    @property
    def firmware_vars(self) -> Path:
        """OVMF's empty variable store, as locked."""
        return self.folder / "OVMF_VARS.fd"

    @property
    def manifest(self) -> Path:
        """The signed manifest."""
        return self.folder / manifest.NAME

    @property
    def digest(self) -> str:
        """Digest of the manifest's payload: the identity of the image."""
        return dsse.digest(jcs.dumps(self.payload))

    @property
    def pcrs(self) -> Mapping[str, str]:
        """Predicted PCR values (hex) of the SHA-256 bank."""
        values: Mapping[str, str] = self.payload["reference"]["pcrs"]["sha256"]
        return values


class _Steps:
    """Reports the steps, and that the current one still runs."""

    def __init__(self, report: Report) -> None:
        self._report, self._start = report, time.monotonic()
        self._step, self._last = 0, 0.0

    def next(self) -> None:
        self._step += 1
        self.say("")

    def say(self, detail: str) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        self._report(Progress(self._step, len(STEPS), STEPS[self._step - 1], detail, round(seconds, 1)))

    def tick(self) -> None:
        if time.monotonic() - self._last > _TICK_SECONDS:
            self.say(f"{time.monotonic() - self._start:.0f} s")


def _recipe() -> bytes:
    """Digest of this room's own code: a change of the builder is a change of the definition."""
    total = hashlib.sha256()
    folder = Path(str(files("cube_images")))
    for path in sorted(folder.glob("*.py")):
        if path.stem not in _BESIDE:
            total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.digest()


def _digest(definition: Flavour, locked: Lock) -> str:
    total = hashlib.sha256(_recipe())
    places = {name: Path(f"/{name}") for name in mkosi.PLACES}
    for name in mkosi.templates():
        total.update(render(f"mkosi/{name}", mkosi.values(definition, **places)).encode())
    for part in (
        locked.digest(),
        initrd.digest(definition, locked),
        rootfs.digest(definition, locked),
        json.dumps(definition.recorded, sort_keys=True),
    ):
        total.update(part.encode() + b"\0")
    return total.hexdigest()


def definition_digest(name: str) -> str:
    """SHA-256 (hex) over all that decides the image: lock, flavour, templates, the guest's code, this builder."""
    return _digest(flavour.load(name), lock.load(name))


def _folder(digest: str) -> Path:
    return cache_dir() / "images" / digest


def open_image(folder: Path) -> Image:
    """The image in a folder that `build` made. Raises `ImageError` when there is none."""
    try:
        payload = json.loads((folder / _PAYLOAD).read_text())
        return Image(folder, payload)
    except (OSError, ValueError) as error:
        raise ImageError(f"{folder} holds no built image: {error}", "run `measured-image build`") from error


def built(name: str) -> Image | None:
    """The image of the current definition if this host has built it, else None. Reads little, starts nothing."""
    folder = _folder(definition_digest(name))
    return open_image(folder) if (folder / _PAYLOAD).is_file() else None


def build(name: str, signer: dsse.Signer, report: Report = lambda _: None) -> Image:
    """The image of flavour `name`, built if the definition has changed, with a manifest signed by `signer`.

    Raises `ImageError` with one sentence. Interrupted, it leaves no mount, no process and no half image.
    """
    steps = _Steps(report)
    definition, locked = flavour.load(name), lock.load(name)
    digest = _digest(definition, locked)
    if not _whole(_folder(digest)):
        steps.next()
        first = not (cache_dir() / "trees").is_dir()
        require_space(cache_dir(), _CACHE_SPACE if first else _IMAGE_SPACE, "building an image")
        locked = ensure_packages(definition, locked, steps.say, steps.tick)
        digest = _digest(definition, locked)
        if not _whole(_folder(digest)):
            entry(_folder(digest), lambda folder: _make(definition, locked, digest, folder, steps))
            _prune(_folder(digest))
    image = open_image(_folder(digest))
    image.folder.touch()
    manifest.write(image.folder, image.payload, signer)
    return image


def _prune(newest: Path) -> None:
    """Remove the images that were used longest ago, but for a few: each is more than 100 MB."""
    images = [path for path in newest.parent.glob("[!.]*") if path.is_dir() and path != newest]
    for path in sorted(images, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT_IMAGES - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


def _whole(folder: Path) -> bool:
    """Whether the cache has the image undamaged; a damaged one is removed."""
    if not folder.is_dir():
        return False
    try:
        image = open_image(folder)
        expected = {image.disk: image.payload["image"], image.uki: image.payload["uki"]}
        if all(f"sha256:{sha256_file(path)}" == digest for path, digest in expected.items()):
            return True
    except (ImageError, OSError, KeyError):
        pass
    shutil.rmtree(folder)
    return False


def ensure_packages(
    definition: Flavour, locked: Lock, say: Callable[[str], None], tick: Callable[[], None] | None = None
) -> Lock:
    """Have all locked packages in the cache and return the lock that holds.

    If some are nowhere, that is an error, or, where the flavour allows it, a new lock: `say` tells what changes.
    """
    gone = debian.fetch(locked.packages(), locked.suite, on_tick=tick)
    if not gone:
        return locked
    names = ", ".join(package.spec for package in gone)
    what = f"neither the cache, the mirror nor the snapshot archive has {names}"
    if not definition.relock:
        raise ImageError(what, f"run `measured-image lock {definition.name}` and review what changes")
    say(f"{what}; locking {definition.name!r} anew")
    new = resolve.resolve(definition.name, say)
    for line in lock.changes(locked, new):
        say(f"changed: {line}")
    say("all predicted measurements change with them")
    lock.store(new, shipped=False)
    if missing := debian.fetch(new.packages(), new.suite, on_tick=tick):
        raise ImageError(f"the mirror lists {missing[0].spec}, but does not have it", "try again later")
    return new


def _make(definition: Flavour, locked: Lock, digest: str, folder: Path, steps: _Steps) -> None:
    steps.next()
    for wheel in locked.wheels:
        wheels.fetch(wheel.name, definition.name, steps.tick)
    steps.next()
    tools = trees.tree(definition, locked, "tools", steps.tick)
    steps.next()
    ollama.build(definition, locked, steps.tick)
    steps.next()
    first = initrd.build(definition, locked, tools)
    steps.next()
    parent = trees.scratch_parent(_WORK_SPACE)
    require_space(parent, _WORK_SPACE, "the root file system")
    work = Path(tempfile.mkdtemp(prefix="cube-image-", dir=parent))
    try:
        binaries = rootfs.stage(definition, locked, tools, work / "extra")
        steps.next()
        output = mkosi.build(
            definition,
            locked,
            tools=tools,
            initrd=first,
            extra=work / "extra",
            work=work,
            cache=cache_dir() / "mkosi" / locked.digest("image", "tools")[:32],
            on_line=lambda _: steps.tick(),
            on_tick=steps.tick,
        )
        run(["cp", "--sparse=always", output / "disk.raw", folder / "disk.img"], on_tick=steps.tick)
        shutil.copyfile(output / "disk.efi", folder / "uki.efi")
        packages = manifest.installed(locked, (output / "disk.manifest").read_text())
    finally:
        _remove(work)
    firmware = initrd.unpacked(locked.package("ovmf")) / "usr/share/OVMF"
    for target, source in _FIRMWARE.items():
        shutil.copyfile(firmware / source, folder / target)
    steps.next()
    payload = manifest.payload(
        definition, locked, folder, definition_digest=digest, packages=packages, binaries=binaries
    )
    steps.next()
    (folder / _PAYLOAD).write_bytes(jcs.dumps(payload))


def _remove(folder: Path) -> None:
    if is_root():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        run(["rm", "-rf", folder], root=True)


def copy(image: Image, target: Path) -> Image:
    """Copy an image with its manifest into `target` (made if need be), file by file, each whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(image.folder.iterdir()):
        temporary = target / f".{path.name}.tmp"
        run(["cp", "--sparse=always", path, temporary])
        temporary.replace(target / path.name)
    return open_image(target)
