# SPDX-License-Identifier: Apache-2.0
"""What a machine's console says about a boot that failed. The guest wrote it: it is shown, never obeyed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_TAIL = 1 << 20
_SHOWN = 200
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_START = "BdsDxe: loading"  # what the firmware says when it starts what it boots
_PATTERNS = (
    # (pattern, whether the boot is over for sure), the most telling first
    (re.compile(r"cube: halt: (?P<reason>.+)"), True),
    (re.compile(r"(?P<reason>device-mapper: verity: .+ is corrupted.*)"), False),
    (re.compile(r"(?P<reason>Kernel panic - not syncing.*)"), True),
    (re.compile(r"BdsDxe: (?P<reason>No bootable option or device was found)"), True),
    (re.compile(r"BdsDxe: (?P<reason>failed to (?:load|start) Boot.*Access Denied)"), True),
)
_CRASH = "Kernel panic - not syncing: Fatal exception"
_STAGES = (
    ("agent", re.compile(r"agent up, boot|launch sha256:[0-9a-f]{64}")),
    ("system", re.compile(r"BdsDxe: starting|Linux version|EFI stub|\[ +\d+\.\d+\]")),
    ("firmware", re.compile(r"BdsDxe|UEFI|\x1b\[2J")),
)


@dataclass(frozen=True)
class BootFailure:
    """Why a boot failed, in the console's words; `final` when nothing can come after it.

    `crash`: the kernel met an exception in its own code, and no check of ours says why the boot ended.
    """

    reason: str
    final: bool
    crash: bool = False


def tail(path: Path, limit: int = _TAIL, since: int = 0) -> str:
    """The last `limit` bytes of a console's log after offset `since`, as text; empty when there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(since, file.tell() - limit))
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""


def clean(text: str) -> str:
    """`text` without terminal control, one line, at most 200 characters."""
    return " ".join(_CONTROL.sub("", text).split())[:_SHOWN]


def boot_failure(text: str) -> BootFailure | None:
    """The most telling failure that the console names for the last boot in it, or None."""
    plain = _CONTROL.sub("", text)
    plain = plain[max(plain.rfind(_START), 0) :]
    found = [(next(iter(pattern.finditer(plain)), None), final) for pattern, final in _PATTERNS]
    said = [(match, final) for match, final in found if match is not None]
    if not said:
        return None
    # A panic after a corrupted block: the block is the reason, the panic makes it final.
    reason = clean(said[0][0]["reason"])
    return BootFailure(reason, any(final for _, final in said), reason.startswith(_CRASH))


def stage(text: str) -> str:
    """How far the boot got: firmware, system or agent; `power on` before anything was printed."""
    return next((name for name, pattern in _STAGES if pattern.search(text)), "power on")
