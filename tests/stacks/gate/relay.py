# SPDX-License-Identifier: Apache-2.0
"""A man in the middle: ends TLS with a key of his own and relays every byte to the real machine and back.

usage: relay.py PORT HOST:PORT FOLDER
"""

import contextlib
import socket
import ssl
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def own_certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "relay.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def serve(port: int, target: str, folder: Path) -> None:
    mine = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    mine.load_cert_chain(own_certificate(folder))
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.check_hostname = False
    theirs.verify_mode = ssl.CERT_NONE
    host, _, number = target.rpartition(":")
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            accepted, _ = server.accept()

            def one(raw: socket.socket = accepted) -> None:
                try:
                    client = mine.wrap_socket(raw, server_side=True)
                    machine = theirs.wrap_socket(socket.create_connection((host, int(number)), 10))
                except OSError:
                    raw.close()
                    return
                threading.Thread(target=copy, args=(machine, client), daemon=True).start()
                copy(client, machine)

            threading.Thread(target=one, daemon=True).start()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
