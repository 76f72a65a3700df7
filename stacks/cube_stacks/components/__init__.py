# SPDX-License-Identifier: Apache-2.0
"""What a Pulumi project of one's own builds with."""

from cube_stacks.components.inference import ConfidentialInference

__all__ = ["ConfidentialInference"]
