# SPDX-License-Identifier: Apache-2.0
"""The real agent as a process of this host: a swtpm instead of /dev/tpmrm0, folders instead of verity volumes.

usage: host_agent.py FOLDER (with host.json in it). The model behind it is one fixed answer; gates don't ask models.
"""

import json
import socketserver
import sys
import threading
from pathlib import Path

from cube_attestation.launch import Model
from cube_proxy.agent import Settings, main
from cube_proxy.tpm import Tpm

ANSWER = b'data: {"choices": [{"delta": {"content": "Paris"}}]}\n\n'


class Backend(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self.rfile.read(length)
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(ANSWER)}\r\nconnection: close\r\n\r\n"
        self.wfile.write(head.encode() + ANSWER)


def run(folder: Path) -> int:
    told = json.loads((folder / "host.json").read_text())
    backend = folder / "backend.sock"
    backend.unlink(missing_ok=True)
    server = socketserver.ThreadingUnixStreamServer(str(backend), Backend)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tpm = Tpm(told["tcti"])
    for pcr, digest in told["events"]:
        tpm.extend(pcr, bytes.fromhex(digest))
    del tpm

    def open_volume(_name: str, model: Model, place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        (place / model.file).write_bytes(b"GGUF")
        sidecar = {
            "version": 1,
            "model": "sha256:" + "00" * 32,
            "size": 4,
            "config": {},
            "template": "",
            "params": {},
        }
        (place / "ollama.json").write_text(json.dumps(sidecar))

    return main(
        Settings(
            tcti=told["tcti"],
            launch_disk=(folder / "launch.img").read_bytes,
            open_volume=open_volume,
            is_corrupted=lambda _: False,
            run=folder / "run",
            models_run=folder / "models",
            backend_socket=backend,
            admin_socket=folder / "admin.sock",
            group=told["group"],
            firmware_log=folder / "firmware.log",
            systemd_log=folder / "systemd.log",
            os_release=folder / "os-release",
        )
    )


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
