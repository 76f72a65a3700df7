# SPDX-License-Identifier: Apache-2.0
"""The files that Envoy watches, and Envoy's word that what they say is in force."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from pathlib import Path

from . import envoy, envoy_admin
from .rules import Config

APPLY_SECONDS = 30.0
_POLL_SECONDS = 0.01

SECRET_FILE = "sds/tls.json"  # noqa: S105 - a path
CLUSTERS_FILE = "cds/clusters.json"
TOKEN_FILE = "ecds/token.json"  # noqa: S105 - a path
LIMITS_FILE = "ecds/limits.json"
ROUTES_FILE = "rds/service.json"
_EXTENSION = "extension_config_discovery.http_filter."
_STATISTICS = {
    SECRET_FILE: "sds.tls.version_text",
    CLUSTERS_FILE: "cluster_manager.cds.version_text",
    TOKEN_FILE: f"{_EXTENSION}cube.jwt.version_text",
    LIMITS_FILE: f"{_EXTENSION}cube.limits.version_text",
    ROUTES_FILE: "http.service.rds.service.version_text",
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
        self._shown: envoy.View | None = None

    def show(self, view: envoy.View) -> None:
        """Write all that follows from ``view``, in the order in which Envoy must know it: routes last."""
        if view == self._shown:
            return
        self.write(CLUSTERS_FILE, envoy.clusters(view, self._shown))
        self.write(TOKEN_FILE, envoy.token_check(view))
        self.write(LIMITS_FILE, envoy.limits(view))
        self.write(ROUTES_FILE, envoy.routes(view))
        self._shown = view

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
        answer = await envoy_admin.ask(self._admin, "/stats?filter=version_text")
        return parse_versions(answer.text) if answer else {}  # Envoy is starting, with the files as they are


def parse_versions(statistics: str) -> dict[str, str]:
    """The version of each dynamic resource by its statistic's name."""
    return dict(_VERSION.findall(statistics))
