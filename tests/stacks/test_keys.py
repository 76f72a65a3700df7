# SPDX-License-Identifier: Apache-2.0
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cube_stacks.keys import KeyFailure, domain_key, environment_key, open_key
from cube_stacks.state import read_record, state_folder, write_atomically, write_record


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_a_key_is_made_once_and_signs() -> None:
    reference = environment_key("local", "control")
    assert environment_key("local", "control") == reference
    key = open_key(reference)
    key.public_key.verify(key.sign(b"x"), b"x", ec.ECDSA(hashes.SHA256()))
    path = Path(reference.removeprefix("file:"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_roles_and_domains_have_keys_of_their_own() -> None:
    ids = {open_key(environment_key("local", role)).keyid for role in ("control", "ca", "image")}
    ids |= {open_key(domain_key("local", name)).keyid for name in ("acme", "globex")}
    assert len(ids) == 5
    assert open_key(environment_key("other", "ca")).keyid not in ids


def test_of_many_that_start_at_once_one_key_wins() -> None:
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(open_key(environment_key("local", "ca")).keyid))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1
    assert [path.name for path in (state_folder("local") / "keys").iterdir()] == ["ca.pem"]


def test_a_key_never_shows_its_private_half() -> None:
    reference = environment_key("local", "ca")
    key = open_key(reference)
    assert key.keyid in repr(key)
    assert "PRIVATE" not in repr(key)


@pytest.mark.parametrize("reference", ["", "key.pem", "pkcs11:token=x", "env:KEY", "http://x/key"])
def test_an_unknown_scheme_is_refused(reference: str) -> None:
    with pytest.raises(KeyFailure, match="file:"):
        open_key(reference)


def test_bad_key_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KeyFailure, match="No such file"):
        open_key(f"file:{tmp_path / 'none.pem'}")
    readable = Path(environment_key("local", "ca").removeprefix("file:"))
    readable.chmod(0o640)
    with pytest.raises(KeyFailure, match="chmod 600"):
        open_key(f"file:{readable}")
    broken = tmp_path / "broken.pem"
    write_atomically(broken, readable.read_bytes()[:80], 0o600)
    with pytest.raises(KeyFailure, match="not an unencrypted PEM"):
        open_key(f"file:{broken}")
    other = tmp_path / "ed.pem"
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomically(other, pem, 0o600)
    with pytest.raises(KeyFailure, match="P-256"):
        open_key(f"file:{other}")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "Local", "-a", "a" * 64])
def test_an_environment_is_a_dns_label(name: str) -> None:
    with pytest.raises(ValueError, match="environment"):
        state_folder(name)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "é"])
def test_a_domain_name_is_no_path(name: str) -> None:
    with pytest.raises(KeyFailure, match="domain"):
        domain_key("local", name)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert read_record(path) is None
    write_record(path, {"a": 1})
    assert read_record(path) == {"a": 1}
    path.write_text('{"a":')
    assert read_record(path) is None
