# SPDX-License-Identifier: Apache-2.0
"""Makes ``fakepki`` importable, and finds the folder of real evidence."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Real evidence: the folder of CUBE_VECTORS, or ../shared/vectors beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "vectors"
    folder = Path(os.environ.get("CUBE_VECTORS") or beside)
    if not folder.is_dir():
        pytest.skip("no folder with real evidence: set CUBE_VECTORS")
    return folder
