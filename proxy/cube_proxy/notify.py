# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): tells systemd that a service is ready and alive."""

from __future__ import annotations

import os
import socket


def notify(message: str) -> None:
    """Send ``message`` (e.g. ``READY=1``) to the service manager; without one there is nobody to tell."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.connect("\0" + address[1:] if address.startswith("@") else address)
        manager.sendall(message.encode())
