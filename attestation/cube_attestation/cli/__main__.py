# SPDX-License-Identifier: Apache-2.0
"""``python -m cube_attestation.cli``."""

import sys

from . import main

sys.exit(main())
