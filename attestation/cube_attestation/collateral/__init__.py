# SPDX-License-Identifier: Apache-2.0
"""What evidence needs beside itself to be verified, and where vendors publish it: the only online part.

``needs`` and the vendors' modules are pure: evidence in, what is lacking out, each with its request and with the
check that an answer must pass. ``http`` and ``cache`` are the edges, ``fetch`` goes from one to the other.
"""
