# SPDX-License-Identifier: Apache-2.0
"""The vendors' services on this machine: a real HTTP server for the fake AMD, Intel, NVIDIA and others."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import fake_azure
import fake_nvidia
import fake_snp
import fake_tdx
import fake_tokens
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cube_attestation.collateral.services import SERVICES
from whole_bundles import published

Reply = tuple[int, dict[str, str], bytes]
Handler = Callable[[bytes], Reply]
JSON, DER, PEM = "application/json", "application/pkix-cert", "application/x-pem-file"


def ok(body: bytes, media: str, **headers: str) -> Reply:
    return 200, {"Content-Type": media, **{k.replace("_", "-"): v for k, v in headers.items()}}, body


@dataclass
class FakeServices:
    """``routes``: ``METHOD /path?query`` → answer; ``seen``: requests in order; ``address`` serves all."""

    routes: dict[str, Handler] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    keys_given: list[str | None] = field(default_factory=list)
    address: str = ""

    def give(self, request: str, reply: Reply) -> None:
        self.routes[request] = lambda _: reply

    def options(self) -> list[str]:
        """``--service`` options that send every request here."""
        return [text for name in SERVICES for text in ("--service", f"{name}={self.address}")]

    def amd(self, machine: fake_snp.FakeSnp) -> None:
        product, kind, tcb = machine.product, machine.kind, machine.key_tcb
        chip = fake_snp.CHIP[: 8 if product == "Turin" else 64].hex()
        query = f"blSPL={tcb.bootloader:02}&teeSPL={tcb.tee:02}&snpSPL={tcb.snp:02}&ucodeSPL={tcb.microcode:02}"
        if product == "Turin":
            query = f"fmcSPL={tcb.fmc:02}&{query}"
        self.give(f"GET /vcek/v1/{product}/{chip}?{query}", ok(machine.leaf.der, DER))
        self.give(f"GET /{kind}/v1/{product}/cert_chain", ok(machine.ask.pem + machine.ark.pem, PEM))
        self.give(f"GET /{kind}/v1/{product}/crl", ok(machine.crl, "application/pkix-crl"))

    def intel(self, machine: fake_tdx.FakeTdx, *, authority: str = "platform") -> None:
        given = machine.collateral()
        chain = urllib.parse.quote(given.tcb_info_chain.decode())
        info = ok(published(given.tcb_info, "tcbInfo"), JSON, TCB_Info_Issuer_Chain=chain)
        identity = ok(
            published(given.qe_identity, "enclaveIdentity"), JSON, SGX_Enclave_Identity_Issuer_Chain=chain
        )
        self.give(f"GET /tdx/certification/v4/tcb?fmspc={machine.fmspc.hex().upper()}", info)
        self.give("GET /tdx/certification/v4/qe/identity", identity)
        pck = ok(given.pck_crl or b"", "application/pkix-crl")
        self.give(f"GET /sgx/certification/v4/pckcrl?ca={authority}&encoding=der", pck)
        self.give("GET /IntelSGXRootCA.der", ok(given.root_crl or b"", "application/pkix-crl"))
        self.give("GET /sgx/certification/v4/rootcacrl", ok((given.root_crl or b"").hex().encode(), "text/plain"))

    def nvidia(
        self, *devices: fake_nvidia.FakeDevice, rims: dict[str, fake_nvidia.FakeRim], **given: object
    ) -> None:
        """RIM service and OCSP responder; ``given``: as in ``fake_nvidia.status``."""
        for identifier, manifest in rims.items():
            body = {"id": identifier, "rim": base64.b64encode(manifest.sign()).decode(), "rim_format": "TEXT"}
            self.give(f"GET /v1/rim/{identifier}", ok(json.dumps(body).encode(), JSON))
        chains = [one.certs() for one in devices] + [one.certs() for one in rims.values()]
        certs = [cert for chain in chains for cert in chain.values()]
        self.routes["POST /"] = Responder({c.make().serial_number: c for c in certs}, given)

    def azure(self, machine: fake_azure.FakeAzure) -> None:
        for name, issued in zip(("root", "ca2025", "ca24"), fake_azure.chain(), strict=True):
            self.give(f"GET /pkiops/certs/{name}.crt", ok(issued.der, DER))
        for name, listed in zip(("root", "ca2025"), machine.crls(), strict=True):
            self.give(f"GET /pkiops/crl/{name}.crl", ok(listed, "application/pkix-crl"))

    def keys(self, path: str, *roles: str) -> None:
        sets = [fake_tokens.jwk(role, fake_tokens.KIDS[role]) for role in roles]
        self.give(f"GET {path}", ok(fake_tokens.key_set(*sets), JSON))


@dataclass
class Responder:
    """An OCSP responder (RFC 6960): reads the request with a library, answers about the certificate, echoes nonces.

    ``given`` may hold ``echo``: other nonce bytes, or None for no nonce.
    """

    certificates: dict[int, fake_nvidia.Cert]
    given: dict[str, object]

    def __call__(self, body: bytes) -> Reply:
        request = ocsp.load_der_ocsp_request(body)
        cert = self.certificates[request.serial_number]
        issuer = (cert.issuer or cert).make()
        expected = ocsp.OCSPRequestBuilder().add_certificate(cert.make(), issuer, request.hash_algorithm).build()
        assert request.issuer_key_hash == expected.issuer_key_hash
        assert request.issuer_name_hash == expected.issuer_name_hash
        nonce: object = request.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
        given = dict(self.given)
        nonce = given.pop("echo", nonce)
        assert request.public_bytes(Encoding.DER) == body
        return ok(fake_nvidia.status(cert, **{"nonce": nonce, **given}), "application/ocsp-response")


@contextlib.contextmanager
def serving(services: FakeServices) -> Iterator[FakeServices]:
    """Run the server."""

    class Served(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            services.seen.append(f"{self.command} {self.path}")
            services.keys_given.append(self.headers.get("Authorization"))
            handler = services.routes.get(f"{self.command} {self.path}")
            status, headers, content = handler(body) if handler else (404, {}, b"no such thing")
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that hang up are what some tests are about."""

    server = Server(("127.0.0.1", 0), Served)
    services.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield services
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
