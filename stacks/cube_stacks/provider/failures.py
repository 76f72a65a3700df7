# SPDX-License-Identifier: Apache-2.0
"""From what our libraries raise to what the engine shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cube_attestation.errors import AttestationError, BadInput, KeyMismatch, Unreachable

from cube_stacks.gate import BootFailed, Overdue, Refused
from cube_stacks.keys import KeyFailure
from cube_stacks.local.process import ProcessFailure
from cube_stacks.provider.base import Failed


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of gate, keys, files and processes into Failed with the same words."""
    try:
        yield
    except Refused as error:
        raise Failed("FAILED_PRECONDITION", f"the machine is not admitted: {error}") from error
    except BootFailed as error:
        raise Failed("FAILED_PRECONDITION", f"{error.code}: {error}") from error
    except Overdue as error:
        raise Failed("DEADLINE_EXCEEDED", str(error)) from error
    except KeyMismatch as error:
        raise Failed("FAILED_PRECONDITION", f"claims.tls_key_mismatch: {error}") from error
    except Unreachable as error:
        raise Failed("UNAVAILABLE", str(error)) from error
    except BadInput as error:
        raise Failed("INVALID_ARGUMENT", str(error)) from error
    except (AttestationError, KeyFailure, ProcessFailure) as error:
        raise Failed("FAILED_PRECONDITION", str(error)) from error
