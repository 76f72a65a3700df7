# SPDX-License-Identifier: Apache-2.0
"""Time under a host that moves the clock."""

from __future__ import annotations

from cube_proxy.clock import TOLERANCE_SECONDS, Clock, Floor, is_behind, now, raised
from cube_proxy.lease import Lease, status
from hypothesis import given
from hypothesis import strategies as st

seconds = st.floats(0, 1e9, allow_nan=False)


def test_no_floor_means_the_wall_clock() -> None:
    assert now(Clock(100.0, 5.0), None) == 100.0
    assert not is_behind(Clock(0.0, 5.0), None)


def test_time_goes_on_when_the_host_sets_the_clock_back() -> None:
    floor = Floor(1000.0, 10.0)
    assert now(Clock(500.0, 40.0), floor) == 1030.0
    assert is_behind(Clock(500.0, 40.0), floor)
    assert not is_behind(Clock(1030.0 - TOLERANCE_SECONDS, 40.0), floor)


@given(seconds, seconds, seconds, seconds)
def test_the_floor_only_rises(wall: float, monotonic: float, later: float, said: float) -> None:
    clock = Clock(wall, monotonic + later)
    floor = Floor(wall, monotonic)
    assert raised(floor, clock, said).at(clock) >= floor.at(clock)
    assert raised(floor, clock, said).at(clock) >= said


def test_a_lease_ends_at_the_earlier_of_both_clocks() -> None:
    lease = Lease(deadline=100.0, expires=5000.0)
    assert lease.status(Clock(4999.0, 99.0), None) == "valid"
    assert lease.status(Clock(4999.0, 100.0), None) == "expired"
    assert lease.status(Clock(5000.0, 99.0), None) == "expired"
    assert status(None, Clock(0, 0), None) == "none"


def test_a_clock_set_back_does_not_prolong_a_lease() -> None:
    floor = Floor(4000.0, 10.0)
    lease = Lease(deadline=1e9, expires=4100.0)
    assert lease.status(Clock(3990.0, 60.0), floor) == "valid"  # within the tolerance
    assert lease.status(Clock(3000.0, 60.0), floor) == "expired"  # Envoy would take expired tokens by this clock
    assert lease.status(Clock(4050.0, 111.0), floor) == "expired"  # 101 s passed, whatever the wall says


def test_what_is_left() -> None:
    lease = Lease(deadline=100.0, expires=5000.0)
    assert lease.seconds_left(Clock(4990.0, 50.0), None) == 10.0
    assert lease.seconds_left(Clock(6000.0, 50.0), None) == 0.0
    assert lease.expires_text() == "1970-01-01T01:23:20Z"


def test_a_revoked_lease_stays_revoked() -> None:
    assert Lease(100.0, 5000.0, revoked="gate.failed").status(Clock(0.0, 0.0), None) == "revoked"
