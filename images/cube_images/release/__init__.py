# SPDX-License-Identifier: Apache-2.0
"""A built image on its way out: as the clouds take disks, and published by content. Nothing here changes a byte."""
