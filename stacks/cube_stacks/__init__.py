# SPDX-License-Identifier: Apache-2.0
"""Pulumi programs, provider and the cube command."""
