# SPDX-License-Identifier: Apache-2.0
"""``attestation connect``: plain HTTP on loopback in, attested TLS out.

Clients that know nothing of attestation talk to a port of this computer. Each connection of theirs gets one TLS
connection to one machine, and not one byte goes out before the key at its other end was attested. The pure parts:
``targets`` (what to connect to, in which order), ``head`` (is this a request?), ``channel`` (TLS without a socket),
``answers`` (errors as clients of OpenAI read them). The edges: ``attest`` (asks for evidence), ``keys`` (which keys
passed, until when), ``relay`` (one connection), ``server`` (listens, until it is told to end).
"""
