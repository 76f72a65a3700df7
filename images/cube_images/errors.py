# SPDX-License-Identifier: Apache-2.0
"""The one error that a user of this room sees: what went wrong, and what to do about it."""


class ImageError(Exception):
    """One clear failure. `str()` is a single sentence; `hint`, when there is one, says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint
