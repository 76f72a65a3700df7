# SPDX-License-Identifier: Apache-2.0
"""What an image is made of, said so that others can check it: differences, bill of materials, licences, provenance,
rebuilding. Nothing here can change a byte of an image."""
