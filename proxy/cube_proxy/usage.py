# SPDX-License-Identifier: Apache-2.0
"""What was used, by domain and model: requests, prompt and completion tokens of this boot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cube_attestation import jcs

from .audit_line import Seen


@dataclass
class _Model:
    """Totals of one model in one domain. ``unmetered``: answered, but the backend told no counts."""

    codes: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0


class Usage:
    """Totals since the boot; a model's name is "" for requests that named none which the domain may use."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, _Model]] = {}

    def add(self, domain: str, model: str, seen: Seen) -> None:
        """Count one request that has ended."""
        models = self._models.setdefault(domain, {})
        total = models.get(model)
        if total is None:
            total = models[model] = _Model()
        total.codes[seen.status] += 1
        if seen.prompt_tokens is not None:
            total.prompt_tokens += seen.prompt_tokens
            total.completion_tokens += seen.completion_tokens or 0
        elif model and seen.status == 200:
            total.unmetered += 1

    def describe(self, domain: str) -> dict[str, jcs.Json]:
        """The ``models`` of ``GET /{domain}/usage``."""
        return {
            name: {
                "requests": total.codes.total(),
                "prompt_tokens": total.prompt_tokens,
                "completion_tokens": total.completion_tokens,
                "unmetered": total.unmetered,
            }
            for name, total in sorted(self._models.get(domain, {}).items())
            if name
        }

    def render(self) -> list[str]:
        """Prometheus lines."""
        requests = ["# TYPE cube_requests_total counter"]
        tokens = ["# TYPE cube_tokens_total counter"]
        unmetered = ["# TYPE cube_unmetered_total counter"]
        for domain, models in sorted(self._models.items()):
            for model, total in sorted(models.items()):
                labels = f'domain="{domain}",model="{model}"'
                requests += [
                    f'cube_requests_total{{{labels},code="{code}"}} {n}' for code, n in sorted(total.codes.items())
                ]
                if model:
                    tokens.append(f'cube_tokens_total{{{labels},kind="prompt"}} {total.prompt_tokens}')
                    tokens.append(f'cube_tokens_total{{{labels},kind="completion"}} {total.completion_tokens}')
                    unmetered.append(f"cube_unmetered_total{{{labels}}} {total.unmetered}")
        return requests + tokens + unmetered
