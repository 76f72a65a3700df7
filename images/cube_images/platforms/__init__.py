# SPDX-License-Identifier: Apache-2.0
"""What the registers of each target's machines will hold after an image has booted there, from the image alone."""
