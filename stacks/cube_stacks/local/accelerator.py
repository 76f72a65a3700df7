# SPDX-License-Identifier: Apache-2.0
"""Whether KVM works here: found out by starting a guest, once per boot of the host."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cube_stacks.local import tiny
from cube_stacks.local.process import host_boot
from cube_stacks.state import cache_folder, read_record, write_record

Accelerator = Literal["kvm", "tcg"]
_LINE = "cube: a guest runs"
_PROBE_S = 5.0


@dataclass(frozen=True)
class Probe:
    """The outcome for KVM: it works, or why not, in one sentence."""

    works: bool
    words: str


def probe_kvm(qemu: str = "qemu-system-x86_64") -> Probe:
    """Ask the cache of this host boot, else start the tiny guest under KVM and see whether it prints."""
    path = cache_folder() / "kvm-probe.json"
    subject = {"host_boot": host_boot(), "usable": os.access("/dev/kvm", os.R_OK | os.W_OK), "qemu": qemu}
    record = read_record(path)
    if record is not None and record.get("subject") == subject:
        return Probe(bool(record["probe"]["works"]), str(record["probe"]["words"]))
    probe = _probe("kvm", qemu)
    write_record(path, {"subject": subject, "probe": asdict(probe)})
    return probe


def _probe(accelerator: Accelerator, qemu: str) -> Probe:
    if accelerator == "kvm":
        if not Path("/dev/kvm").exists():
            return Probe(False, "there is no /dev/kvm: no virtualization here, or the kvm module is not loaded")
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return Probe(False, "/dev/kvm can't be opened by this user: add it to the group kvm")
    with tempfile.TemporaryDirectory(prefix="cube-probe-") as name:
        folder = Path(name)
        (folder / "bios").write_bytes(tiny.firmware(_LINE))
        serial = folder / "serial"
        command = [qemu, "-accel", accelerator, "-machine", "q35", "-m", "16", "-nodefaults", "-no-user-config"]
        command += ["-display", "none", "-bios", str(folder / "bios"), "-serial", f"file:{serial}", "-no-reboot"]
        command += ["-cpu", "max" if accelerator == "tcg" else "host"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x01"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_PROBE_S,
                check=False,
            )
        except OSError as error:
            return Probe(False, f"{qemu}: {error.strerror}; run: apt-get install qemu-system-x86")
        except subprocess.TimeoutExpired as error:
            return Probe(False, f"a guest under {accelerator} hung for {_PROBE_S:g} s{_said(error.stderr)}")
        if serial.exists() and _LINE in serial.read_text(errors="replace"):
            return Probe(True, f"a guest under {accelerator} started and printed")
        said = _said(done.stderr)
        return Probe(False, f"a guest under {accelerator} ended with {done.returncode} without printing{said}")


def _said(stderr: bytes | None) -> str:
    lines = [line.strip() for line in (stderr or b"").decode(errors="replace").splitlines() if line.strip()]
    telling = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    return f" (QEMU: {telling[:120]})" if telling else ""


def choose(wanted: Literal["auto", "kvm", "tcg"]) -> tuple[Accelerator, str]:
    """The accelerator to use, and why in words. ValueError: KVM is asked for and does not work."""
    if wanted == "tcg":
        return "tcg", "software emulation, as configured"
    probe = probe_kvm()
    if probe.works:
        return "kvm", f"KVM: {probe.words}"
    if wanted == "kvm":
        raise ValueError(f"KVM is configured and does not work: {probe.words}; set the accelerator to auto or tcg")
    return "tcg", f"software emulation, for KVM does not work: {probe.words}"
