# SPDX-License-Identifier: Apache-2.0
"""The ``attestation`` command: exit codes, output, files, live machines, and how fast it starts."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cube_attestation import bundle as bundles
from cube_attestation import jcs, launch
from cube_attestation.cli import main
from cube_attestation.cmw import EVIDENCE, Collection
from fakemachine import Answer, Machine, ok, running
from fakepki import NONCE, World, cmdline_changed, default_boot, ec_key, spki, systemd_log, tcg_log

AT = "2026-11-24T12:00:00Z"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a good bundle and its policy."""
    write(tmp_path, World())
    return tmp_path


def write(folder: Path, world: World) -> None:
    (folder / "bundle.json").write_bytes(bundles.dump(world.receipted()))
    (folder / "policy.toml").write_text(world.policy_toml())


def verify(folder: Path, *more: str) -> int:
    return main(["verify", str(folder / "bundle.json"), "--policy", str(folder / "policy.toml"), "--at", AT, *more])


def test_a_good_bundle_passes_in_three_lines(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(files) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PASSED")
    assert "tier software" in lines[1]
    assert "software.no_hardware_protection" in lines[1]
    assert "environment local" in lines[2]
    assert "\x1b" not in "".join(lines)


def test_json_is_the_verdict_and_the_same_every_time(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(files, "--format", "json") == 0
    first = capsys.readouterr().out
    assert json.loads(first)["passed"] is True
    assert json.loads(first)["freshness"] == "receipt"
    assert verify(files, "--format", "json", "--output", str(files / "verdict.json")) == 0
    assert capsys.readouterr().out == ""
    assert (files / "verdict.json").read_text() == first


def test_a_pipe_is_written_to_and_a_link_followed(files: Path) -> None:
    pipe, link, target = files / "pipe", files / "link", files / "target"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_text)
        assert verify(files, "--output", str(pipe)) == 0
        assert read.result(10).startswith("PASSED")
    assert pipe.is_fifo(), "a rename would have put a file in the place of the pipe"
    link.symlink_to(target)
    assert verify(files, "--output", str(link)) == 0
    assert link.is_symlink()
    assert target.read_text().startswith("PASSED")


def test_refused_and_not_authentic_have_their_own_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, World(environment="prod"))
    assert verify(tmp_path) == 1
    assert "claims.environment_mismatch" in capsys.readouterr().out
    write(tmp_path, World(ak_key="another"))
    assert verify(tmp_path) == 2
    assert "tpm.ak.key_mismatch" in capsys.readouterr().out


def test_the_nonce_is_compared(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(files, "--nonce", NONCE.hex()) == 0
    assert verify(files, "--nonce", "00" * 32) == 1
    assert "claims.nonce_mismatch" in capsys.readouterr().out


BAD = {
    "no such file": (["verify", "missing.json", "--policy", "policy.toml"], "missing.json"),
    "a policy that is none": (["verify", "bundle.json", "--policy", "bundle.json"], "bundle.json"),
    "a bundle that is none": (["verify", "policy.toml", "--policy", "policy.toml"], "policy.toml"),
    "a time that is none": (["verify", "bundle.json", "--policy", "policy.toml", "--at", "noon"], "--at"),
    "a nonce that is none": (["verify", "bundle.json", "--policy", "policy.toml", "--nonce", "xy"], "--nonce"),
    "save without a URL": (["verify", "bundle.json", "--policy", "policy.toml", "--save", "x"], "--save"),
    "a nonce with a URL": (["verify", "https://x", "--policy", "policy.toml", "--nonce", "00"], "--nonce"),
    "a folder": (["inspect", "."], "."),
    "nothing known": (["inspect", "noise"], "noise"),
    "an empty file": (["inspect", "empty"], "empty"),
    "an output that can't be": (
        ["verify", "bundle.json", "--policy", "policy.toml", "--at", AT, "--output", "no/such/folder"],
        "no/such/folder",
    ),
}


@pytest.mark.parametrize(("arguments", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_that_names_it(
    arguments: list[str],
    named: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    (files / "noise").write_bytes(b"\x01\x02\x03")
    (files / "empty").write_bytes(b"")
    assert main(arguments) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("attestation: ")
    assert named in error


@pytest.mark.parametrize(
    "arguments", [[], ["verify"], ["verify", "x"], ["unknown"], ["verify", "x", "--format", "y"]]
)
def test_wrong_usage_is_64(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 64


def endorsements(world: World) -> Collection:
    return Collection({k: v for k, v in world.evidence().items.items() if v.indicator != EVIDENCE})


def live(world: World) -> Machine:
    """A machine that makes its claims over the nonce that it is sent, now, with the key of its TLS connection."""

    def attest(body: bytes) -> Answer:
        request = jcs.loads(body)
        assert isinstance(request, dict)
        world.nonce = base64.b64decode(str(request["nonce"]))
        world.guest_time = datetime.now(UTC)
        items = world.evidence().items
        return ok(Collection({k: v for k, v in items.items() if v.indicator == EVIDENCE}).to_json())

    return Machine({"POST /attestation": attest})


def current() -> World:
    """A world whose certificates are valid today."""
    today = datetime.now(UTC).replace(microsecond=0)
    world = World(ak_valid=(today - timedelta(days=1), today + timedelta(days=7)), tls_spki=spki(ec_key("tls")))
    world.policy["freshness.receipt_keys"] = ""
    return world


def test_a_live_machine_is_verified_over_its_own_connection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], today_pki: None
) -> None:
    world = current()
    (tmp_path / "policy.toml").write_text(world.policy_toml())
    (tmp_path / "known.json").write_bytes(bundles.dump(bundles.Bundle(endorsements(world))))
    arguments = ["--policy", str(tmp_path / "policy.toml"), "--endorsements", str(tmp_path / "known.json")]
    with running(live(world)) as machine:
        url = f"https://{machine.address}"
        assert main(["verify", url, *arguments, "--save", str(tmp_path / "kept.json")]) == 0
        assert "freshness nonce" in capsys.readouterr().out
        world.tls_spki = "sha256:" + "99" * 32  # somebody in the middle relays another machine's evidence
        assert main(["verify", url, *arguments]) == 1
        assert "claims.tls_key_mismatch" in capsys.readouterr().out
    kept = bundles.load((tmp_path / "kept.json").read_bytes())
    assert set(kept.evidence.items) == set(world.evidence().items)


@pytest.fixture
def today_pki(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake PKI's certificates are made around a fixed date: make them around today."""
    import fakepki

    today = datetime.now(UTC).replace(microsecond=0)
    original = fakepki.issue

    def issue(*given: object, **options: object) -> fakepki.Identity:
        options.setdefault("start", today - timedelta(days=1))
        if "end" not in options or options["end"] < today + timedelta(days=1):  # type: ignore[operator]
            options["end"] = today + timedelta(days=7)
        return original(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fakepki, "issue", issue)
    for maker in (fakepki.tpm_maker, fakepki.environment_ca):
        maker.cache_clear()
    monkeypatch.setattr(fakepki, "tpm_maker", fakepki.tpm_maker.__wrapped__)
    monkeypatch.setattr(fakepki, "environment_ca", fakepki.environment_ca.__wrapped__)


def test_a_machine_that_does_not_answer_is_4(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", "https://127.0.0.1:1", "--policy", str(files / "policy.toml"), "--timeout", "1"]
    assert main(arguments) == 4
    assert "can't connect" in capsys.readouterr().err


def test_explain_names_the_diverging_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, World(boot=cmdline_changed()))
    arguments = [str(tmp_path / "bundle.json"), "--policy", str(tmp_path / "policy.toml"), "--at", AT]
    assert main(["explain", *arguments]) == 1
    out = capsys.readouterr().out
    assert "PCR 11: UKI section .cmdline differs from the predicted one" in out
    assert next(line for line in out.splitlines() if line.startswith("! ")).count("UKI section .cmdline") == 2
    write(tmp_path, World())
    assert main(["explain", *arguments]) == 0
    assert "are the predicted ones" in capsys.readouterr().out


def test_inspect_says_what_things_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    evidence = world.evidence()
    quote = jcs.loads(evidence.items["tpm-quote"].value)
    assert isinstance(quote, dict)
    contents = {
        "bundle": (bundles.dump(world.receipted()), "bundle sha256:"),
        "evidence": (jcs.dumps(evidence.to_json()), "evidence collection"),
        "claims": (evidence.items["claims"].value, "extraData that binds them"),
        "quote": (evidence.items["tpm-quote"].value, "TPM quote"),
        "attest": (base64.b64decode(str(quote["attest"])), "TPMS_ATTEST"),
        "log": (tcg_log(default_boot()), "UKI section .cmdline"),
        "userspace-log": (systemd_log(default_boot()), "systemd phase sysinit"),
        "launch": (evidence.items["launch"].value, "signed document application/vnd.cube.launch+json"),
        "disk": (launch.write_volume(world.launch_envelope()), "launch disk"),
        "certificate": (evidence.items["ek-certificate"].value, "certificate of serial"),
        "chain": (evidence.items["ek-chain"].value, "certificate of CN=TPM issuer"),
        "policy": (world.policy_toml().encode(), "lowest tier software"),
    }
    for name, (data, words) in contents.items():
        (tmp_path / name).write_bytes(data)
        assert main(["inspect", str(tmp_path / name)]) == 0
        assert words in capsys.readouterr().out, name
    assert main(["inspect", *(str(tmp_path / name) for name in contents)]) == 0
    assert capsys.readouterr().out.count(f"{tmp_path}/") == len(contents)


def test_inspect_shows_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "claims").write_bytes(replace(World().claims(), image="\u009b31mred").encode())
    assert main(["inspect", str(tmp_path / "claims")]) == 0
    assert "\u009b" not in capsys.readouterr().out


def test_inspect_goes_on_after_a_malformed_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = World().evidence().with_item("tcg-eventlog", "application/vnd.cube.tcg-eventlog", b"\0")
    (tmp_path / "evidence").write_bytes(jcs.dumps(evidence.to_json()))
    assert main(["inspect", str(tmp_path / "evidence")]) == 0
    out = capsys.readouterr().out
    assert "malformed" in out
    assert "TPM quote" in out


def test_colour_only_on_a_terminal(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert verify(files) == 0
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert verify(files) == 0
    assert "\x1b[" not in capsys.readouterr().out


def test_as_a_process_it_says_its_exit_code(files: Path) -> None:
    arguments = [sys.executable, "-m", "cube_attestation.cli", "verify", "bundle.json", "--policy", "policy.toml"]
    done = subprocess.run([*arguments, "--at", AT], cwd=files, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"PASSED")


def test_help_costs_nothing_heavy() -> None:
    code = (
        "import sys; from cube_attestation.cli import _parser; _parser().format_help();"
        "bad = {'cryptography', 'ssl', 'http', 'lxml', 'json'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
