# SPDX-License-Identifier: Apache-2.0
"""The one family of errors: every message says what is wrong, where, and what to do about it."""

from __future__ import annotations


class AttestationError(Exception):
    """Root of every error that this package raises on purpose.

    ``what`` is a sentence without a full stop, ``where`` a file, address or JSON path, ``todo`` what to do now.
    """

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.todo = todo

    def diagnostics(self) -> str:
        """One line: where, what, what to do."""
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line}; {self.todo}" if self.todo else line

    def __str__(self) -> str:
        return self.diagnostics()


class BadInput(AttestationError):
    """Bytes, files or arguments that are not what their format demands (exit code 3)."""


class NotAuthentic(AttestationError):
    """A signature or a chain that does not hold. ``why`` is the last part of a reason code.

    ``invalid``: a signature by an accepted key is wrong. ``untrusted_key``: nobody who is accepted signed.
    """

    def __init__(self, what: str, *, why: str, where: str = "", todo: str = "") -> None:
        super().__init__(what, where=where, todo=todo)
        self.why = why


class Unreachable(AttestationError):
    """The machine did not answer, or answered with a refusal (exit code 4). ``status`` is 0 without an answer."""

    def __init__(self, what: str, *, where: str = "", todo: str = "", status: int = 0) -> None:
        super().__init__(what, where=where, todo=todo)
        self.status = status


class KeyMismatch(AttestationError):
    """The connection ends in another TLS key than the attested one; nothing was sent over it."""
