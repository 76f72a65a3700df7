# SPDX-License-Identifier: Apache-2.0
"""One line per event on standard error, which the service manager keeps. Never tokens, keys or prompts."""

from __future__ import annotations

import sys


def log(message: str) -> None:
    """Write ``message`` as one line."""
    print(message.replace("\n", " "), file=sys.stderr, flush=True)
