# SPDX-License-Identifier: Apache-2.0
"""Makes ``fakepki`` importable, finds the folder of real evidence, and records which reason codes fire."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import recorded_codes

LAST = "test_every_code_of_the_table_fires_and_only_those"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at the codes that fired comes after the tests in which they do."""
    items.sort(key=lambda item: item.name == LAST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    recorded_codes.seen.clear()
    yield  # raises when the test fails, and then nothing of it counts
    for code in recorded_codes.seen:
        recorded_codes.fired.setdefault(code, item.nodeid)


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Real evidence: the folder of CUBE_VECTORS, or ../shared/vectors beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "vectors"
    folder = Path(os.environ.get("CUBE_VECTORS") or beside)
    if not folder.is_dir():
        pytest.skip("no folder with real evidence: set CUBE_VECTORS")
    return folder
