# SPDX-License-Identifier: Apache-2.0
"""Everything of the audit that the agent holds. Imported while the TPM makes the attestation key, not before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .audit import Auditor, Origin, clock_text
from .audit_api import AuditApi
from .audit_pipe import Pipe
from .audit_store import Store
from .tls import TlsKey


@dataclass(frozen=True)
class AuditService:
    """The chains, what domains read of them, and the pipe that feeds them."""

    auditor: Auditor
    api: AuditApi
    pipe: Pipe


def start(
    run: Path, origin: Origin, key: TlsKey, now: Callable[[], float], changed: Callable[[], None]
) -> AuditService:
    """Begin to read Envoy's lines in the running loop. ``changed`` is called when what may be served changes."""
    auditor = Auditor(origin, key, Store(run / "audit", origin.boot))
    pipe = Pipe(run, auditor, now)
    pipe.changed = changed
    pipe.open()
    return AuditService(auditor, AuditApi(auditor, origin.boot, clock_text(now())), pipe)
