# SPDX-License-Identifier: Apache-2.0
"""The Cube proxy inside a measured machine."""
