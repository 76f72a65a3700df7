# SPDX-License-Identifier: Apache-2.0
"""``attestation collateral fetch|add|show``: complete a bundle with what vendors publish, online or from files."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .prove import Commands

if TYPE_CHECKING:
    from cube_attestation.bundle import Bundle
    from cube_attestation.collateral.fetch import Outcome
    from cube_attestation.collateral.model import Context, Need
    from cube_attestation.collateral.services import Endpoints

PASSED, MISSING, NOT_AUTHENTIC, UNREACHABLE = 0, 1, 2, 4

EPILOG = """\
examples:
  attestation collateral show bundle.json
  attestation collateral fetch bundle.json --output complete.json
  attestation collateral fetch bundle.json --dry-run
  attestation collateral fetch bundle.json --in-place --service intel-pcs=https://pccs.example.com:8081
  attestation collateral add bundle.json vcek.der milan.crl driver.swidtag --output complete.json

Answers are checked against the vendors' pinned roots, or those of --policy, before they are stored.
exit codes: 0 nothing is lacking; 1 something is (show); 2 a service gave what does not hold; 3 bad input; 4 a
service could not be reached or does not know it; 64 usage
"""


def add(commands: Commands) -> None:
    """The command's arguments; nothing heavy is imported."""
    parser = commands.add_parser("collateral", help="fetch, add and show what vendors publish about evidence",
                                 description="The only part that goes online.")  # fmt: skip
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    fetch = actions.add_parser("fetch", help="get what the bundle's verification lacks from the vendors' services")
    _common(fetch)
    _target(fetch)
    fetch.add_argument("--dry-run", action="store_true", help="print the requests that it would make")
    fetch.add_argument("--offline", action="store_true", help="use only what is in the cache")
    fetch.add_argument("--refresh", action="store_true", help="don't use what is in the cache")
    fetch.add_argument("--anew", action="store_true",
                       help="ask also for lists, TCB documents and OCSP that are still in force")  # fmt: skip
    fetch.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for one piece, all tries")
    fetch.add_argument("--attempts", type=int, default=4, metavar="N", help="tries for one piece")
    fetch.add_argument("--bearer", metavar="NAME=file:KEY", action="append", default=[],
                       help="the key that a service wants, e.g. nvidia-rim=file:ngc.key")  # fmt: skip
    fetch.add_argument("--ca-file", default="", metavar="FILE", help="accept these TLS authorities too (PEM)")
    fetch.add_argument("--ocsp-nonce", choices=("required", "optional"), default="required",
                       help="optional: take an OCSP response without a nonce by its dates")  # fmt: skip
    _services(fetch)
    fetch.set_defaults(run=run_fetch)

    bring = actions.add_parser("add", help="add files: certificates, lists, TCB info, manifests, OCSP, key sets")
    _common(bring)
    bring.add_argument("files", metavar="FILE", nargs="+", help="recognised by content")
    _target(bring)
    bring.set_defaults(run=run_add)

    show = actions.add_parser("show", help="what is there, whose, until when, and what is lacking")
    _common(show)
    show.add_argument("--format", choices=("human", "json"), default="human")
    _services(show)
    show.set_defaults(run=run_show)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--policy", metavar="FILE", help="judge by the anchors and ages of this policy")
    parser.add_argument("--at", metavar="TIME", help="judge as of this time, e.g. 2026-11-24T12:00:00Z")


def _target(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--output", metavar="FILE", help="the bundle to write; else it goes to standard output")
    target.add_argument("--in-place", action="store_true", help="replace the bundle itself")


def _services(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--service", metavar="NAME=URL", action="append", default=[],
                        help="ask there instead, e.g. amd-kds=https://kds.example.com")  # fmt: skip
    parser.add_argument("--config", metavar="FILE",
                        help="TOML with a table [services]; by default cube-confidential/collateral.toml in the "
                        "user's configuration folder")  # fmt: skip


def run_fetch(options: argparse.Namespace) -> int:
    """Complete a bundle; what was had is kept even where other pieces fail. Raises BadInput."""
    from cube_attestation.collateral.cache import Cache, folder
    from cube_attestation.collateral.fetch import Fetcher
    from cube_attestation.collateral.http import Client
    from cube_attestation.errors import BadInput

    if options.attempts < 1 or options.timeout <= 0:
        raise BadInput("must be positive", where="--attempts, --timeout")
    if options.offline and (options.refresh or options.anew):
        raise BadInput("leaves nothing to ask", where="--offline with --refresh or --anew", todo="give one of them")
    endpoints = _endpoints(options)
    context = _context(options, endpoints)
    bundle = _bundle(options)
    if options.dry_run:
        return _dry_run(bundle, context, endpoints)
    _writable(options)
    client = Client(
        endpoints,
        timeout=options.timeout,
        attempts=options.attempts,
        authorities=options.ca_file,
        bearer=_bearer(options.bearer),
        waiting=_say,
    )
    fetcher = Fetcher(
        None if options.offline else client,
        Cache(folder(), endpoints),
        lambda: datetime.now(UTC).replace(microsecond=0),
        refresh=options.refresh or options.anew,
        say=_say,
    )
    outcome = fetcher.complete(bundle, context, live=options.at is None, anew=options.anew)
    if not outcome.got and not outcome.failed:
        _say("nothing is lacking")
    _write_bundle(options, outcome.bundle)
    return _outcome(outcome)


def _outcome(outcome: Outcome) -> int:
    from cube_attestation.errors import BadInput, NotAuthentic

    for failure in outcome.failed:
        text = f"attestation: {failure.need.item}: {failure.need.what}: {failure.error}"
        print(text + ("; the policy goes on without it" if failure.need.optional else ""), file=sys.stderr)
    _say(
        f"{len(outcome.got)} pieces added, {len(outcome.failed)} could not be had; bundle {outcome.bundle.digest()}"
    )
    failed = [failure.error for failure in outcome.failed if not failure.need.optional]
    if not failed:
        return PASSED
    bad = any(isinstance(error, BadInput | NotAuthentic) for error in failed)
    return NOT_AUTHENTIC if bad else UNREACHABLE


def _dry_run(bundle: Bundle, context: Context, endpoints: Endpoints) -> int:
    """The requests of the first round; what a manifest's signers need shows only once it is there."""
    from cube_attestation.collateral.needs import find

    needs = find(bundle.evidence, context)
    for need in needs:
        print(f"{need.item}: {need.what} ({_printable(need.why)})")
        for request in need.requests:
            print(f"  {request.method} {endpoints.url(request.service, request.path, request.host)}")
        if not need.requests:
            print(f"  no service gives it: {need.todo}")
    if any(need.name.startswith("nvidia.rim.") for need in needs):
        print("then OCSP about each manifest's signers")
    if not needs:
        print("nothing is lacking")
    return PASSED


def run_add(options: argparse.Namespace) -> int:
    """Add files to a bundle. Raises BadInput for a file that does not belong to its evidence."""
    from cube_attestation.collateral.adding import add as add_files
    from cube_attestation.collateral.services import Endpoints
    from cube_attestation.recognise import recognise

    from .commands import _read

    _writable(options)
    files = [(path, recognise(_read(path), where=path)) for path in options.files]
    context = _context(options, Endpoints({}))
    added = add_files(_bundle(options), files, context, datetime.now(UTC).replace(microsecond=0))
    for one in added.taken:
        _say(f"{one.item}: {one.what} from {one.source}")
    for words in added.aside:
        _say(f"left aside: {words}")
    _write_bundle(options, added.bundle)
    return PASSED


def run_show(options: argparse.Namespace) -> int:
    """Print the table. Raises BadInput."""
    from cube_attestation import jcs, times
    from cube_attestation.collateral import sources
    from cube_attestation.collateral.listing import need_json, rows
    from cube_attestation.collateral.needs import find

    endpoints = _endpoints(options)
    context, bundle = _context(options, endpoints), _bundle(options)
    found, needs = rows(bundle.evidence, context), find(bundle.evidence, context)
    if options.format == "json":
        value: dict[str, jcs.Json] = {
            "version": 1,
            "bundle": bundle.digest(),
            "now": times.format_time(context.now),
            "items": [row.to_json(context.now) for row in found],
            "needed": [need_json(need, endpoints) for need in needs],
            "sources": [
                {"item": s.item, "what": s.what, "source": s.source, "digest": s.digest,
                 "time": times.format_time(s.time)}
                for s in sources.read(bundle.evidence).sources
            ],
        }  # fmt: skip
        sys.stdout.write(jcs.dumps(value).decode() + "\n")
        return MISSING if any(not need.optional for need in needs) else PASSED
    table = [("ITEM", "WHAT", "ISSUER", "FROM", "UNTIL", "AGE", "STATE", "DIGEST")]
    for row in found:
        issued, until = (f"{moment:%Y-%m-%d}" if moment else "-" for moment in (row.issued, row.until))
        days = f"{(context.now - row.issued).days} d" if row.issued else "-"
        table.append((row.item, row.what[:60], row.issuer[:40], issued, until, days, row.state(context.now),
                      row.digest[7:23]))  # fmt: skip
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print(_printable("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()))
    for one in sources.read(bundle.evidence).sources:
        print(_printable(f"added {times.format_time(one.time)}: {one.item}: {one.what}, from {one.source}"))
    print(f"\nlacking at {times.format_time(context.now)}: {len(needs) or 'nothing'}")
    _print_needs(needs)
    return MISSING if any(not need.optional for need in needs) else PASSED


def _print_needs(needs: tuple[Need, ...]) -> None:
    for need in needs:
        allowed = "; the policy goes on without it" if need.optional else ""
        print(_printable(f"  {need.item}: {need.what}: {need.why}{f'; {need.todo}' if need.todo else ''}{allowed}"))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _say(text: str) -> None:
    """One line of progress."""
    print(_printable(text), file=sys.stderr, flush=True)


def _bundle(options: argparse.Namespace) -> Bundle:
    from cube_attestation import bundle as bundles

    from .commands import _read

    return bundles.load(_read(options.bundle), where=options.bundle)


def _context(options: argparse.Namespace, endpoints: Endpoints) -> Context:
    import secrets

    from cube_attestation import policy as policies
    from cube_attestation.collateral.model import Context

    from .commands import _clock, _read

    policy = policies.load(_read(options.policy), where=options.policy) if options.policy else None
    return Context.of(
        policy,
        _clock(options.at),
        seed=secrets.token_bytes(32),
        pccs=endpoints.has_pccs(),
        nonce_optional=getattr(options, "ocsp_nonce", "required") == "optional",
    )


def _endpoints(options: argparse.Namespace) -> Endpoints:
    """The table with replacements of the configuration file, and of the options, which win."""
    from cube_attestation.collateral.services import Endpoints

    configured = _configured(options.config)
    given = Endpoints.read(options.service).replaced
    return Endpoints({**configured.replaced, **given})


def _configured(path: str | None) -> Endpoints:
    import tomllib

    from cube_attestation.collateral.services import Endpoints
    from cube_attestation.errors import BadInput
    from cube_attestation.fields import Fields

    from .commands import _read

    if path is None:
        base = os.environ.get("XDG_CONFIG_HOME", "")
        home = Path(base) if base and Path(base).is_absolute() else Path.home() / ".config"
        file = home / "cube-confidential" / "collateral.toml"
        if not file.is_file():
            return Endpoints({})
        path = str(file)
    try:
        fields = Fields(tomllib.loads(_read(path).decode()), path)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"not TOML: {str(error)[:100]}", where=path) from error
    table = fields.member("services")
    found = Endpoints.read(f"{name}={table.text(name)}" for name in table.names())
    fields.done()
    return found


def _bearer(options: list[str]) -> dict[str, str]:
    """Service → key, read from files: keys are no arguments, which everybody on the machine sees."""
    from cube_attestation.collateral.services import SERVICES
    from cube_attestation.errors import BadInput

    from .commands import _read

    found: dict[str, str] = {}
    for text in options:
        name, _, reference = text.partition("=")
        if name not in SERVICES or not reference.startswith("file:"):
            raise BadInput("is no NAME=file:KEY", where="--bearer", todo=f"names: {', '.join(SERVICES)}")
        key = _read(reference.removeprefix("file:")).strip()
        if not key.isascii() or not key or not key.decode().isprintable() or len(key) > 4096:
            raise BadInput("holds no key of one line", where="--bearer")
        found[name] = key.decode()
    return found


def _writable(options: argparse.Namespace) -> None:
    """Whether the bundle can be written at all, asked before anything is fetched. Raises BadInput."""
    from cube_attestation.errors import BadInput

    target = options.bundle if options.in_place else options.output
    if target and not os.access(Path(target).parent, os.W_OK):
        raise BadInput("can't be written: no such folder, or not yours", where=target, todo="name another file")

    if not options.output and not options.in_place and sys.stdout.isatty():
        raise BadInput("the bundle would go to the terminal", where="--output", todo="give --output or --in-place")


def _write_bundle(options: argparse.Namespace, bundle: Bundle) -> None:
    from cube_attestation import bundle as bundles

    from .commands import _write

    data = bundles.dump(bundle)
    target = options.bundle if options.in_place else options.output
    if target:
        _write(target, data)
    else:
        sys.stdout.write(data.decode())
