# SPDX-License-Identifier: Apache-2.0
"""Measured images: definition, lock, build and prediction."""
