# SPDX-License-Identifier: Apache-2.0
"""What is in a file that another tool wrote: recognised by content, as bytes sorted by what they are.

Nothing here decides about authenticity. Recognition looks at magic numbers and fixed fields first, then takes text
apart (PEM, hex, base64, JSON, simple YAML, tokens) and looks at what comes out.
"""

from .content import recognise
from .material import Material, Quote

__all__ = ["Material", "Quote", "recognise"]
