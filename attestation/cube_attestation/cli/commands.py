# SPDX-License-Identifier: Apache-2.0
"""What each sub-command does: the edges (files, clock, network, terminal) around the pure core."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cube_attestation import bundle as bundles
from cube_attestation import policy as policies
from cube_attestation import reports, times
from cube_attestation.bundle import Bundle
from cube_attestation.errors import BadInput
from cube_attestation.verdict import Verdict

from . import human

MAX_FILE = 128 << 20
MAX_TIMEOUT_S = 3600


def run(options: argparse.Namespace) -> int:
    """Dispatch; raises AttestationError for what goes wrong."""
    own = {"verify": _verify, "inspect": _inspect, "explain": _explain}
    code: int = (own.get(options.command) or options.run)(options)  # the others name theirs with set_defaults
    return code


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise BadInput(f"can't be read: {error.strerror}", where=path) from error
    if len(data) > MAX_FILE:
        raise BadInput(f"larger than {MAX_FILE >> 20} MiB", where=path)
    return data


def _write(path: str, data: bytes) -> None:
    """The whole file or nothing; a device or pipe, which a rename would do away with, is written to."""
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        target = target.resolve()  # a link stays and points to what was written
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp gives a string
            os.replace(temporary, target)  # noqa: PTH105
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadInput(f"can't be written: {error.strerror}", where=path) from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _clock(at: str | None) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) if at is None else times.parse(at, where="--at")


def _nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise BadInput("is not hex", where="--nonce") from error


def _verify(options: argparse.Namespace) -> int:
    policy = policies.load(_read(options.policy), where=options.policy)
    now = _clock(options.at)
    key = _signing_key(options)
    if "://" in options.subject:
        bundle, verdict = _verify_live(options, policy, now)
    else:
        if options.save or options.endorsements:
            raise BadInput("only for a URL", where="--save" if options.save else "--endorsements")
        bundle = bundles.load(_read(options.subject), where=options.subject)
        verdict = _core(bundle, policy, now, _nonce(options.nonce), None)
    if options.format == "human":
        colour = not options.output and human.wants_colour(sys.stdout)
        text = human.render(verdict, colour=colour).encode()
    elif key is not None:
        from cube_attestation.reports import ear

        text = ear.sign(verdict, key, where=options.sign)
    else:
        text = reports.render(options.format, verdict, bundle, subject=options.subject)
    if options.output:
        _write(options.output, text)
    else:
        sys.stdout.write(text.decode())
    return verdict.exit_code


def _signing_key(options: argparse.Namespace) -> bytes | None:
    """PEM of the key that ``--sign`` refers to; read before anything is fetched."""
    if options.sign is None:
        return None
    if options.format != "ear":
        raise BadInput("only an EAR can be signed", where="--sign", todo="add --format ear")
    scheme, _, path = str(options.sign).partition(":")
    if scheme != "file" or not path:
        raise BadInput("is no reference to a key file", where="--sign", todo="write file:KEY.pem")
    return _read(path)


def _core(
    bundle: Bundle, policy: policies.Policy, now: datetime, nonce: bytes | None, tls_spki: str | None
) -> Verdict:
    from cube_attestation.verifier import verify

    return verify(bundle, policy, now=now, nonce=nonce, tls_spki=tls_spki)


def _verify_live(options: argparse.Namespace, policy: policies.Policy, now: datetime) -> tuple[Bundle, Verdict]:
    from cube_attestation import live

    if options.nonce is not None:
        raise BadInput("a machine always gets a fresh nonce", where="--nonce", todo="leave it out with a URL")
    if not 0 < options.timeout <= MAX_TIMEOUT_S:
        raise BadInput(f"{options.timeout:g} is not between 0 and {MAX_TIMEOUT_S}", where="--timeout")
    known = [bundles.load(_read(options.endorsements), where=options.endorsements)] if options.endorsements else []
    clock = live.utc_now if options.at is None else lambda: now
    examined = live.examine(options.subject, policy, known=known, timeout=options.timeout, clock=clock)
    if options.save:
        _write(options.save, bundles.dump(examined.bundle))
    return examined.bundle, examined.verdict


def _inspect(options: argparse.Namespace) -> int:
    from cube_attestation.describe import describe

    for i, path in enumerate(options.files):
        try:
            lines = describe(_read(path))
        except BadInput as error:
            raise BadInput(error.what, where=error.where or path, todo=error.todo) from error
        if len(options.files) > 1:
            print(f"{'' if i == 0 else chr(10)}{path}:")
        print("\n".join(lines))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from cube_attestation.explain import explain

    policy = policies.load(_read(options.policy), where=options.policy)
    bundle = bundles.load(_read(options.subject), where=options.subject)
    verdict = _core(bundle, policy, _clock(options.at), None, None)
    explanation = explain(bundle)
    sys.stdout.write(human.render_explanation(verdict, explanation, colour=human.wants_colour(sys.stdout)))
    return verdict.exit_code
