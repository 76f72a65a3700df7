# SPDX-License-Identifier: Apache-2.0
"""Our Pulumi provider, package `cube-confidential`: `base` says what a resource is, `server` speaks gRPC."""

import sys
from importlib import import_module, metadata
from importlib.util import find_spec

_MODULES = {
    "measured_image": "MeasuredImage",
    "local_machine": "LocalMachine",
    "attestation_gate": "AttestationGate",
    "domain_set": "DomainSet",
    "edge": "Edge",
}


def main() -> int:
    """Entry of `pulumi-resource-cube-confidential`."""
    from cube_stacks.provider.server import serve

    resources = [
        getattr(import_module(f"{__name__}.{module}"), name)()
        for module, name in _MODULES.items()
        if find_spec(f"{__name__}.{module}")
    ]
    return serve(resources, metadata.version("cube-stacks"), sys.argv[1:])
