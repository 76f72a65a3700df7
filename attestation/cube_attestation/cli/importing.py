# SPDX-License-Identifier: Apache-2.0
"""``attestation import``: evidence of other tools as one of our bundles."""

from __future__ import annotations

import argparse
import sys

from .prove import Commands


def add(commands: Commands) -> None:
    """The command's arguments; nothing heavy is imported."""
    parser = commands.add_parser(
        "import",
        help="make a bundle of evidence that other tools wrote",
        description="Recognises the files by content, as `check` does, and puts their bytes under our labels.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="evidence, certificates, collateral, logs")
    parser.add_argument("-o", "--output", metavar="BUNDLE", required=True, help="the bundle to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Raises BadInput for files that hold no evidence, and for evidence of several machines."""
    from cube_attestation import bundle as bundles
    from cube_attestation.importing import bundle
    from cube_attestation.recognise import Material, recognise

    from .commands import _read, _write

    material = Material()
    for path in options.files:
        material += recognise(_read(path), where=path)
    made = bundle(material)
    _write(options.output, bundles.dump(made))
    sys.stdout.write(f"bundle {made.digest()}\n")
    for label, item in sorted(made.evidence.items.items()):
        sys.stdout.write(f"  {label}: {len(item.value)} bytes\n")
    return 0
