# SPDX-License-Identifier: Apache-2.0
"""Our Pulumi provider, package `cube-confidential`: `base` says what a resource is, `server` speaks gRPC."""

import sys
from importlib import metadata


def main() -> int:
    """Entry of `pulumi-resource-cube-confidential`."""
    # Here, so that using `base` loads no resource.
    from cube_stacks.provider.attestation_gate import AttestationGate
    from cube_stacks.provider.domain_set import DomainSet
    from cube_stacks.provider.edge import Edge
    from cube_stacks.provider.local_machine import LocalMachine
    from cube_stacks.provider.measured_image import MeasuredImage
    from cube_stacks.provider.server import serve

    resources = [MeasuredImage(), LocalMachine(), AttestationGate(), DomainSet(), Edge()]
    return serve(resources, metadata.version("cube-stacks"), sys.argv[1:])
