# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from cube_stacks.local import accelerator, tiny
from cube_stacks.local.accelerator import Probe, choose, probe_kvm
from cube_stacks.local.process import host_boot
from cube_stacks.state import cache_folder, write_record


def remember(works: bool, words: str, boot: str) -> None:
    import os

    subject = {"host_boot": boot, "usable": os.access("/dev/kvm", os.R_OK | os.W_OK), "qemu": "qemu-system-x86_64"}
    write_record(cache_folder() / "kvm-probe.json", {"subject": subject, "probe": {"works": works, "words": words}})


def test_the_tiny_guest_really_prints_under_emulation() -> None:
    assert accelerator._probe("tcg", "qemu-system-x86_64") == Probe(True, "a guest under tcg started and printed")


def test_an_emulator_that_ends_without_printing_does_not_work(tmp_path: Path) -> None:
    broken = tmp_path / "qemu"
    broken.write_text("#!/bin/sh\necho 'Could not access KVM kernel module' >&2\nexit 1\n")
    broken.chmod(0o755)
    probe = accelerator._probe("tcg", str(broken))
    assert not probe.works
    assert "Could not access KVM" in probe.words


def test_an_emulator_that_hangs_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_PROBE_S", 0.3)
    broken = tmp_path / "qemu"
    broken.write_text("#!/bin/sh\necho 'KVM internal error. Suberror: 1' >&2\nexec sleep 60\n")
    broken.chmod(0o755)
    probe = accelerator._probe("tcg", str(broken))
    assert probe == Probe(False, "a guest under tcg hung for 0.3 s (QEMU: KVM internal error. Suberror: 1)")


def test_a_missing_emulator_says_how_to_get_it() -> None:
    assert "apt-get install" in accelerator._probe("tcg", "no-such-emulator").words


def test_the_outcome_is_kept_for_this_boot_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_probe", lambda *_: Probe(False, "asked again"))
    remember(True, "kept", host_boot())
    assert probe_kvm() == Probe(True, "kept")
    remember(True, "kept", "another boot")
    assert probe_kvm() == Probe(False, "asked again")
    assert probe_kvm("another qemu") == Probe(False, "asked again")


def test_auto_takes_what_works_and_kvm_insists() -> None:
    remember(False, "a guest under kvm hung", host_boot())
    assert choose("tcg")[0] == "tcg"
    chosen, words = choose("auto")
    assert chosen == "tcg"
    assert "a guest under kvm hung" in words
    with pytest.raises(ValueError, match="set the accelerator to auto or tcg"):
        choose("kvm")
    remember(True, "a guest under kvm started", host_boot())
    assert choose("auto")[0] == "kvm"
    assert choose("kvm")[0] == "kvm"


@pytest.mark.parametrize(("text", "size"), [("x" * 161, 0x10000), ("x", 0x8000), ("x", 0x10001)])
def test_a_firmware_that_does_not_fit_is_refused(text: str, size: int) -> None:
    with pytest.raises(ValueError, match="64 KiB"):
        tiny.firmware(text, size)
