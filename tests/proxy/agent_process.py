# SPDX-License-Identifier: Apache-2.0
"""Runs the agent as a process of its own: `python agent_process.py settings.json`.

A volume is a folder here, and "the kernel found a changed block" is a file named after the volume: this host has no
dm-verity to open. Everything else is what the image runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cube_attestation.launch import Model
from cube_proxy import agent


def main() -> int:
    given = json.loads(Path(sys.argv[1]).read_text())
    run = Path(given["run"])

    def open_volume(name: str, model: Model, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # of an agent before this one
        place.symlink_to(run / "volume")
        (run / "opened").write_text(name)

    return agent.main(
        agent.Settings(
            tcti=given["tcti"],
            launch_disk=(run / "launch.img").read_bytes,
            open_volume=open_volume,
            is_corrupted=lambda name: (run / f"{name}.corrupted").exists(),
            run=run,
            models_run=run / "models",
            admin_socket=run / "admin.sock",
            backend_socket=run / "backend.sock",
            group=given["group"],
            firmware_log=run / "firmware.log",
            systemd_log=run / "systemd.log",
            os_release=run / "os-release",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
