# SPDX-License-Identifier: Apache-2.0
"""For all tests: the programs of this environment (envoy, attestation, cube …) are found without activating it.

And an interrupt works: a shell starts what runs in the background with SIGINT ignored, and programs inherit that.
"""

import os
import signal
import sys
from pathlib import Path

os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
