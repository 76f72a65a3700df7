# SPDX-License-Identifier: Apache-2.0
"""The harness is scripts that import each other and the fake vendors; its tests find them the same way."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "attestation")]
