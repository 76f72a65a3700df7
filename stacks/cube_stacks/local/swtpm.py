# SPDX-License-Identifier: Apache-2.0
"""The machine's TPM: swtpm, manufactured by the environment's TPM CA (EK certificates in NV 0x01c00002 and …16)."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from cube_stacks.ca import TpmManufacturer
from cube_stacks.local.process import Process, ProcessFailure, run_quick, start_detached


def manufacture(state: Path, maker: TpmManufacturer, name: str) -> None:
    """Make the TPM's state in the folder `state`: endorsement keys, and their certificates signed by `maker`.

    Built beside and renamed: a TPM that is there is whole. Raises ProcessFailure.
    """
    draft = state.with_name(f".{state.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    configuration = draft.with_name(f".{state.name}.conf")
    shutil.rmtree(configuration, ignore_errors=True)
    configuration.mkdir(mode=0o700)
    try:
        localca, options, setup = (configuration / part for part in ("localca.conf", "options", "setup.conf"))
        localca.write_text(
            f"statedir = {configuration}\nsigningkey = {maker.issuer_key}\nissuercert = {maker.issuer}\n"
            f"certserial = {maker.issuer.parent / 'serial'}\n"
        )
        options.write_text("--platform-manufacturer Cube\n--platform-version 1\n--platform-model Cube-local\n")
        tool = shutil.which("swtpm_localca")
        if tool is None:
            raise ProcessFailure("swtpm_localca is not installed; run: apt-get install swtpm-tools")
        setup.write_text(
            f"create_certs_tool = {tool}\ncreate_certs_tool_config = {localca}\n"
            f"create_certs_tool_options = {options}\nactive_pcr_banks = sha256\n"
        )
        arguments = ["--tpm2", "--tpmstate", str(draft), "--config", str(setup), "--vmid", name]
        arguments += ["--create-ek-cert", "--pcr-banks", "sha256", "--lock-nvram", "--logfile", str(draft / "log")]
        try:
            run_quick(["swtpm_setup", *arguments], 60)
        except ProcessFailure as error:
            log = draft / "log"
            last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
            raise ProcessFailure(f"the TPM can't be made: {error}{': ' + last[0] if last else ''}") from error
        shutil.rmtree(state, ignore_errors=True)
        draft.rename(state)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(configuration, ignore_errors=True)


def start(state: Path, socket: Path, log: Path) -> Process:
    """Start swtpm for QEMU: it ends when QEMU's connection does. Raises ProcessFailure."""
    socket.unlink(missing_ok=True)
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state},mode=0600", "--terminate"]
    # Relative: a Unix socket's path has 107 bytes, state folders may be deeper.
    command += ["--ctrl", f"type=unixio,path={socket.name},mode=0600", "--log", f"file={state / 'log'},level=1"]
    process = start_detached(command, log, cwd=socket.parent)
    end = time.monotonic() + 10
    while not socket.exists():
        if not process.alive() or time.monotonic() > end:
            process.stop()
            raise ProcessFailure(f"swtpm did not start; see {log}")
        time.sleep(0.01)
    return process


def installed() -> bool:
    """Whether this host has swtpm and its tools."""
    path = os.environ.get("PATH", "")
    return all(shutil.which(name, path=path) for name in ("swtpm", "swtpm_setup", "swtpm_localca", "swtpm_cert"))
