# SPDX-License-Identifier: Apache-2.0
"""Free TCP ports of 127.0.0.1."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """`count` different ports that nobody listens on now."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


def holder(port: int) -> str:
    """The program that listens on TCP `port`, as `name (pid n)`; empty when this user can't see it."""
    wanted = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and wanted:
            with contextlib.suppress(OSError):
                if any(str(entry.readlink()) in wanted for entry in (process / "fd").iterdir()):
                    return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _listening(port: int) -> list[str]:
    """Inodes of the sockets that listen on `port` (state 0A of /proc/net/tcp and tcp6)."""
    found = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.append(fields[9])
    return found


def in_use(host: str, port: int) -> bool:
    """Whether a server could not listen on `host`:`port` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
