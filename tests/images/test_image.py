# SPDX-License-Identifier: Apache-2.0
"""The built image: reproducible, as its manifest says, and with nothing in the root that does not belong there."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import testinfra  # type: ignore[import-untyped]
from cryptography.hazmat.primitives import serialization
from cube_attestation import dsse
from cube_attestation.dsse import LocalSigner
from cube_attestation.errors import NotAuthentic
from cube_images import build, manifest, paths, verification
from cube_images.build import Image

pytestmark = [pytest.mark.image, pytest.mark.slow, pytest.mark.timeout(1200)]

# What a build takes from the cache and does not make: inputs, and what is tested by its own digest.
SHARED = ("apt", "debs", "go", "ollama", "parts", "trees", "wheels")


def _skip_if_changed(image: Image) -> None:
    """Another process may change a source file while the tests run; the image is then rightly another one."""
    if image.payload["definition"] != f"sha256:{build.definition_digest('local')}":
        pytest.skip("the definition changed while the test ran")


def _fresh_cache(folder: Path) -> Path:
    """A cache in which the image, its initrd, its repository and its layers have yet to be made."""
    home = folder / "cube-confidential"
    home.mkdir(parents=True)
    for name in SHARED:
        if (paths.cache_dir() / name).is_dir():
            (home / name).symlink_to(paths.cache_dir() / name)
    return folder


def _frozen_sources(folder: Path) -> Path:
    """A copy of the packages that decide the image, so that nobody changes them between two builds."""
    for name in ("cube_attestation", "cube_images", "cube_proxy", "cube_templates"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(spec.submodule_search_locations[0], folder / name, ignore=ignore)
    return folder


def _key_file(signer: LocalSigner, folder: Path) -> str:
    path = folder / "key.pem"
    path.write_bytes(
        signer.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return f"file:{path}"


def test_built_twice_in_two_folders_is_identical(signer: LocalSigner, tmp_path: Path) -> None:
    """From two caches in folders of different names, and once more over the layers that the first build kept."""
    sources, key = _frozen_sources(tmp_path / "sources"), _key_file(signer, tmp_path)
    one, two = _fresh_cache(tmp_path / "a"), _fresh_cache(tmp_path / "b" / "with a longer name")
    built = []
    for number, cache in enumerate((one, two, one)):
        env = {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(sources)}
        images = cache / "cube-confidential" / "images"
        shutil.rmtree(images, ignore_errors=True)
        done = _command("build", "local", "--key", key, "--output", str(tmp_path / f"image{number}"), env=env)
        assert done.returncode == 0, done.stderr
        assert f"folder   {tmp_path}/image{number}" in done.stdout
        assert len(list(images.glob("[!.]*"))) == 1
        built.append(tmp_path / f"image{number}")
    for name in ("disk.img", "uki.efi", "OVMF_CODE.fd", "OVMF_VARS.fd", "payload.json"):
        first, *others = ((folder / name).read_bytes() for folder in built)
        assert all(other == first for other in others), name


def test_manifest_verifies_and_names_everything(image: Image, signer: LocalSigner) -> None:
    lines = verification.verify(image.manifest, dsse.spki_digest(signer.spki))
    assert any("2, 4, 5, 7, 9, 11 as the image predicts" in line for line in lines)
    assert {item["path"] for item in image.payload["binaries"]} >= {"/usr/bin/envoy", "/usr/bin/ollama"}
    assert all(set(item) == {"name", "version", "architecture", "sha256"} for item in image.payload["packages"])


def test_a_second_key_adds_its_signature(image: Image, tmp_path: Path, signer: LocalSigner) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    other = LocalSigner(ec.generate_private_key(ec.SECP256R1()))
    path = manifest.write(tmp_path, image.payload, signer)
    manifest.write(tmp_path, image.payload, other)
    for key in (signer, other):
        verification.verify(path, dsse.spki_digest(key.spki))
    before = path.read_bytes()
    manifest.write(tmp_path, image.payload, signer)
    assert path.read_bytes() == before
    path.write_text("{")
    manifest.write(tmp_path, image.payload, signer)
    verification.verify(path, dsse.spki_digest(signer.spki))


@pytest.mark.parametrize("name", ["disk.img", "uki.efi"])
def test_changed_file_does_not_verify(image: Image, signer: LocalSigner, tmp_path: Path, name: str) -> None:
    for path in image.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    changed = bytearray((image.folder / name).read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(changed)
    with pytest.raises(NotAuthentic, match=name.replace(".", r"\.")):
        verification.verify(tmp_path, dsse.spki_digest(signer.spki))


def test_another_signer_does_not_verify(image: Image) -> None:
    with pytest.raises(NotAuthentic):
        verification.verify(image.manifest, "sha256:" + "0" * 64)


def _command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cube_images.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})


def test_commands(image: Image, signer: LocalSigner, tmp_path: Path) -> None:
    predicted = _command("predict", str(image.folder), "--json")
    assert json.loads(predicted.stdout) == image.payload["reference"]
    assert image.payload["root"] in _command("show", str(image.folder)).stdout
    public = tmp_path / "key.pem"
    public.write_bytes(
        signer.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    good = _command("verify-manifest", str(image.folder), "--key", str(public))
    assert good.returncode == 0, good.stderr
    bad = _command("verify-manifest", str(image.folder), "--key", "sha256:" + "1" * 64)
    assert bad.returncode == 2
    assert bad.stderr.startswith("measured-image: ")
    assert bad.stderr.count("\n") == 1


def test_predict_takes_less_than_a_second(image: Image) -> None:
    times = []
    for _ in range(3):
        start = time.monotonic()
        _command("predict", str(image.folder))
        times.append(time.monotonic() - start)
    assert min(times) < 1


def _children(pid: int) -> set[int]:
    """All processes below `pid`."""
    found: set[int] = set()
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    todo = [pid]
    while todo:
        here = todo.pop()
        below = {child for child, parent in parents.items() if parent == here} - found
        found |= below
        todo += below
    return found


def _runs(pid: int) -> bool:
    """Whether a process still runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("step", "seconds"), [(1, 0.0), (6, 0.0), (7, 0.5), (7, 6.0)])
def test_interrupted_build_leaves_nothing(
    image: Image, signer: LocalSigner, tmp_path: Path, step: int, seconds: float
) -> None:
    cache = _fresh_cache(tmp_path / "cache")
    key = _key_file(signer, tmp_path)
    mounts = Path("/proc/self/mounts").read_text()
    scratch = set(Path("/dev/shm").glob("cube-*"))
    command = [sys.executable, "-m", "cube_images.cli", "build", "local", "--key", key]
    with subprocess.Popen(
        command,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if f" {step}/9: " in line:
                break
        time.sleep(seconds)
        below = _children(process.pid)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "interrupted" in said.splitlines()[-1]
    assert Path("/proc/self/mounts").read_text() == mounts
    assert set(Path("/dev/shm").glob("cube-*")) == scratch
    end = time.monotonic() + 5
    while any(map(_runs, below)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in below if _runs(pid)]
    assert not list((cache / "cube-confidential" / "images").glob("[!.]*"))


def test_damaged_image_is_built_again(
    image: Image, signer: LocalSigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(_fresh_cache(tmp_path)))
    folder = paths.cache_dir() / "images" / build.definition_digest("local")
    shutil.copytree(image.folder, folder)
    with (folder / "disk.img").open("r+b") as disk:
        disk.seek(50 << 20)
        disk.write(b"damaged")
    _skip_if_changed(image)
    assert build.build("local", signer).payload == image.payload
    assert verification.verify(folder, dsse.spki_digest(signer.spki))


def test_root_tree(root_tree: Path) -> None:
    host = testinfra.get_host(str(root_tree), connection="chroot")
    assert host.file("/etc/os-release").contains("trixie")
    for name in ("/usr/bin/envoy", "/usr/bin/ollama", "/usr/lib/systemd/systemd", "/usr/bin/python3"):
        assert host.file(name).exists, name
        assert host.file(name).mode & 0o022 == 0
    assert host.run("python3 -I -c 'import cube_proxy.agent'").rc == 0
    assert host.run("/usr/bin/ollama --version").rc == 0
    assert host.run("/usr/bin/envoy --version").rc == 0
    assert host.file("/etc/machine-id").size == 0
    for user in ("envoy", "ollama"):
        assert host.user(user).shell.endswith("nologin")
    hashes = host.file("/etc/shadow").content_string.splitlines()
    assert not [line for line in hashes if line.split(":")[1][:1] not in ("!", "*")], "nobody can log in"


def test_root_has_no_way_in_or_out(root_tree: Path) -> None:
    for name in (
        "sshd",
        "ssh",
        "curl",
        "wget",
        "apt",
        "apt-get",
        "dpkg",
        "cloud-init",
        "dhclient",
        "nc",
        "agetty",
        "su",
    ):
        found = [root_tree / place / name for place in ("usr/bin", "usr/sbin", "usr/local/bin")]
        assert not [path for path in found if path.exists() or path.is_symlink()]
    wants = list((root_tree / "etc/systemd/system").rglob("*.wants/*"))
    assert {path.name for path in wants} <= {
        "cube-agent.service",
        "envoy.service",
        "ollama.service",
        "cube-ollama.socket",
        "cube-ollama.service",
    }
    assert not list((root_tree / "usr/lib/systemd/system").glob("*.wants"))
    assert not (root_tree / "usr/lib/systemd/system-generators").exists()
    assert not list((root_tree / "usr/lib/modules").rglob("*.ko*")), "modules come from the measured initrd only"


def test_compiled_code_is_fresh(root_tree: Path) -> None:
    """Unchecked-hash .pyc files: no stat of the source at import, and they match it."""
    folder = root_tree / "usr/lib/python3/dist-packages/cube_proxy"
    sources = sorted(folder.glob("*.py"))
    assert sources
    for path in sources:
        (compiled,) = (folder / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 1
