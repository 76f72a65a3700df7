# SPDX-License-Identifier: Apache-2.0
"""The files that Envoy watches, and Envoy's word that what they say is in force."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from pathlib import Path

from .envoy import Config

APPLY_SECONDS = 30.0
_POLL_SECONDS = 0.01
_ADMIN_SECONDS = 10.0

SECRET_FILE = "sds/tls.json"  # noqa: S105 - a path
ROUTES_FILE = "rds/service.json"
TOKEN_FILE = "ecds/token.json"  # noqa: S105 - a path
_STATISTICS = {
    SECRET_FILE: "sds.tls.version_text",
    ROUTES_FILE: "http.service.rds.service.version_text",
    TOKEN_FILE: "extension_config_discovery.http_filter.cube.jwt.version_text",
}
_VERSION = re.compile(r'^([\w.]+\.version_text): "([0-9a-f]*)"$', re.MULTILINE)


class NotInForce(Exception):
    """Envoy did not take what the files say."""


class EnvoyFiles:
    """Writes a file only when its content changes, by renaming, readable by root and ``group`` only."""

    def __init__(self, folder: Path, admin_socket: Path, group: int) -> None:
        self._folder = folder
        self._admin = admin_socket
        self._group = group
        self._versions: dict[str, str] = {}

    def write(self, name: str, value: Config) -> None:
        """Replace ``name`` by ``value`` with a version that follows from its content."""
        text = json.dumps(value, separators=(",", ":"))
        version = hashlib.sha256(text.encode()).hexdigest()[:32]
        if self._versions.get(name) == version:
            return
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o640)
        with os.fdopen(descriptor, "w") as file:
            os.fchown(descriptor, -1, self._group)
            file.write(f'{{"version_info":"{version}",{text[1:]}')
        temporary.replace(path)
        self._versions[name] = version

    async def in_force(self, seconds: float = APPLY_SECONDS) -> None:
        """Return when Envoy runs with every file as last written. Raises NotInForce after ``seconds``."""
        wanted = {_STATISTICS[name]: version for name, version in self._versions.items()}
        try:
            async with asyncio.timeout(seconds):
                while not wanted.items() <= (await self._ask()).items():
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise NotInForce(f"Envoy did not take its configuration within {seconds:.0f} s") from error

    async def _ask(self) -> dict[str, str]:
        try:
            reader, writer = await asyncio.open_unix_connection(self._admin)
        except OSError:
            return {}  # Envoy is starting, and will start with the files as they are
        try:
            writer.write(b"GET /stats?filter=version_text HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            async with asyncio.timeout(_ADMIN_SECONDS):
                answer = await reader.read()
        except (TimeoutError, ConnectionError):
            return {}
        finally:
            writer.close()
        return parse_versions(answer.decode("latin-1").replace("\r", ""))


def parse_versions(statistics: str) -> dict[str, str]:
    """The version of each dynamic resource by its statistic's name."""
    return dict(_VERSION.findall(statistics))
