# SPDX-License-Identifier: Apache-2.0
"""Build `peers`, which asks Google's go-sev-guest and go-tdx-guest about evidence; for tests and benchmarks only.

Both libraries are licensed under Apache-2.0. `tools/peers/go.sum` pins them; the program is kept in the user's
cache, and nothing of it reaches an image or a distribution.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

import gobuild
from cube_images.errors import ImageError
from cube_images.paths import cache_dir
from gobuild import Program, Say

PROGRAM: Final = Program(
    name="peers",
    what="the verifiers to agree with",
    module=Path(__file__).resolve().parent / "peers",
    package=".",
    takes="about 30 seconds on 2 cores",
    space=500_000_000,
)


def built() -> Path | None:
    """The program in the cache, or None."""
    program = _folder() / PROGRAM.name
    return program if program.is_file() else None


def build(say: Say) -> Path:
    """The program, built if it isn't there. Raises `ImageError`."""
    return gobuild.whole(_folder(), [PROGRAM.name], lambda into: PROGRAM.build(into, say), say) / PROGRAM.name


def _folder() -> Path:
    return cache_dir() / "peers" / PROGRAM.digest()


def main() -> int:
    parser = argparse.ArgumentParser(prog="peers", description=__doc__)
    parser.add_argument("command", choices=["build"], help="print the program's path; what it does: peers/main.go")
    parser.parse_args()
    try:
        print(build(lambda line: print(line, file=sys.stderr, flush=True)))
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
