# SPDX-License-Identifier: Apache-2.0
"""The admission lease: what the gate granted this boot, and until when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cube_attestation import times

from .clock import Clock, Floor, is_behind, now


@dataclass(frozen=True)
class Lease:
    """``deadline`` on the monotonic clock and ``expires`` in Unix seconds: the earlier one ends the lease."""

    deadline: float
    expires: float
    revoked: str = ""

    def status(self, clock: Clock, floor: Floor | None) -> str:
        """``valid``, ``expired`` or ``revoked``. A wall clock behind the floor counts as expired."""
        if self.revoked:
            return "revoked"
        over = clock.monotonic >= self.deadline or now(clock, floor) >= self.expires or is_behind(clock, floor)
        return "expired" if over else "valid"

    def seconds_left(self, clock: Clock, floor: Floor | None) -> float:
        """Until it ends by itself; zero when it has."""
        return max(0.0, min(self.deadline - clock.monotonic, self.expires - now(clock, floor)))

    def expires_text(self) -> str:
        """``expires`` as formats §0 writes times."""
        return times.format_time(datetime.fromtimestamp(self.expires, UTC))


def status(lease: Lease | None, clock: Clock, floor: Floor | None) -> str:
    """``none``, ``valid``, ``expired`` or ``revoked``."""
    return "none" if lease is None else lease.status(clock, floor)
