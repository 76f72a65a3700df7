# SPDX-License-Identifier: Apache-2.0
"""For all tests: the programs of this environment (envoy, attestation, cube …) are found without activating it."""

import os
import sys
from pathlib import Path

os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
