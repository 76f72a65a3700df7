# SPDX-License-Identifier: Apache-2.0
"""Prometheus text of the agent (exposition format 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .clock import Clock
from .control import State

if TYPE_CHECKING:
    from .audit import Auditor

_MODEL_STATES = ("absent", "opened", "ready", "failed")


class Counters:
    """Events by kind and code."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str, code: str) -> None:
        self.events[kind, code] += 1


def render(state: State, models: Mapping[str, str], clock: Clock, counters: Counters, auditor: Auditor) -> str:
    """All metrics at this moment."""
    left = (
        state.lease.seconds_left(clock, state.floor) if state.lease_status(clock) == "valid" and state.lease else 0
    )
    lines = [
        "# TYPE cube_lease_seconds_left gauge",
        f"cube_lease_seconds_left {left:.1f}",
        "# TYPE cube_generation gauge",
        f"cube_generation {state.generation}",
        "# TYPE cube_domains gauge",
        f"cube_domains {len(state.domains.domains) if state.domains else 0}",
        "# TYPE cube_model_state gauge",
    ]
    for name, now in sorted(models.items()):
        lines += [f'cube_model_state{{model="{name}",state="{s}"}} {int(s == now)}' for s in _MODEL_STATES]
    lines.append("# TYPE cube_agent_events_total counter")
    for (kind, code), count in sorted(counters.events.items()):
        lines.append(f'cube_agent_events_total{{kind="{kind}",code="{code}"}} {count}')
    lines += auditor.usage.render()
    for name, kind, value in (
        ("records_total", "counter", auditor.written),
        ("lost_total", "counter", auditor.lost),
        ("store_bytes", "gauge", auditor.room),
        ("healthy", "gauge", int(auditor.healthy)),
    ):
        lines += [f"# TYPE cube_audit_{name} {kind}", f"cube_audit_{name} {value}"]
    return "\n".join([*lines, ""])
