# SPDX-License-Identifier: Apache-2.0
"""Guest time under a host that controls it: wall and monotonic clock together, and a floor that only rises."""

from __future__ import annotations

import time
from dataclasses import dataclass

TOLERANCE_SECONDS = 60


@dataclass(frozen=True)
class Clock:
    """One reading: ``wall`` in Unix seconds, ``monotonic`` in seconds of this boot (suspend included)."""

    wall: float
    monotonic: float

    @classmethod
    def read(cls) -> Clock:
        """Now."""
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True)
class Floor:
    """What a signed message once proved: at ``monotonic`` it was at least ``wall``."""

    wall: float
    monotonic: float

    def at(self, clock: Clock) -> float:
        """The least that the wall clock can be now, in Unix seconds."""
        return self.wall + (clock.monotonic - self.monotonic)


def now(clock: Clock, floor: Floor | None) -> float:
    """Guest time that never goes below the floor, in Unix seconds."""
    return clock.wall if floor is None else max(clock.wall, floor.at(clock))


def is_behind(clock: Clock, floor: Floor | None) -> bool:
    """Whether the wall clock was set back behind the floor: Envoy would take expired tokens by it."""
    return floor is not None and clock.wall < floor.at(clock) - TOLERANCE_SECONDS


def raised(floor: Floor | None, clock: Clock, wall: float) -> Floor:
    """The floor after a signed message of ``wall``; never lower than before."""
    proved = Floor(wall, clock.monotonic)
    return proved if floor is None or proved.at(clock) > floor.at(clock) else floor
