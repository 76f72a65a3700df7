# SPDX-License-Identifier: Apache-2.0
"""The built local image, once per run, from the user's cache."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation.dsse import LocalSigner
from cube_images import build, flavour, lock, manifest, paths, sandbox, trees
from cube_images.build import Image
from cube_images.run import run

sys.path.insert(0, str(Path(__file__).parent))  # helpers of these tests


@pytest.fixture(scope="session")
def signer() -> LocalSigner:
    return LocalSigner(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="session")
def image(signer: LocalSigner, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A copy of the image of the current definition, signed by a key of this run only."""
    built = build.built("local") or build.build("local", signer)
    copied = build.copy(built, tmp_path_factory.mktemp("image"))
    copied.manifest.unlink(missing_ok=True)
    manifest.write(copied.folder, copied.payload, signer)
    return copied


@pytest.fixture(scope="session")
def some_image(signer: LocalSigner) -> Image:
    """A whole image of the lock at hand, the newest of the cache: for reading, in its place, never for changing.

    It may be of an earlier definition, so that a change of the guest's code builds nothing here.
    """
    current = build.built("local")
    wanted = f"sha256:{lock.load('local').digest()}"
    folders = sorted((paths.cache_dir() / "images").glob("[!.]*"), key=lambda path: path.stat().st_mtime)
    for folder in reversed(folders):
        if current is None and (found := build.open_image(folder)).payload["lock"] == wanted:
            current = found
    return current or build.build("local", signer)


@pytest.fixture(scope="session")
def root_tree(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root file system of the image, unpacked from the disk with the locked tools."""
    definition, locked = flavour.load("local"), lock.load("local")
    tools = trees.tree(definition, locked, "tools")
    folder = tmp_path_factory.mktemp("root")
    head = image.disk.read_bytes()[:4096]
    start = int.from_bytes(head[1024 + 128 + 32 : 1024 + 128 + 40], "little") * 512
    argv = ["unsquashfs", "-quiet", "-no-progress", "-offset", str(start), "-dest", "/work/tree", "/disk.img"]
    run(sandbox.command(locked, tools, argv, writable={folder: "/work"}, readable={image.disk: "/disk.img"}))
    yield folder / "tree"
    run(["rm", "-rf", folder], root=True)
