# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import local
import pytest

OUTPUTS = {
    "endpoint": "https://localhost:8443",
    "domains": [{"id": "e44314cd-707b-4cb9-8502-17a34803f0f7", "name": "acme", "models": ["smollm2"]}],
    "verdict": ["PASSED: all is well", "tier software", "environment local", "more"],
}


def test_the_snippets_can_be_pasted() -> None:
    text = local.summary(OUTPUTS, "https://localhost:8443/e443/v1", Path("/state/ca.pem"))
    snippets = text[text.index("With curl:") :].replace("With curl:", "").replace("With the OpenAI SDK:", "")
    checked = subprocess.run(["bash", "-n"], input=snippets, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    code = snippets[snippets.index("-c '") + 4 : snippets.rindex("'")]
    compile(textwrap.dedent(code), "snippet", "exec")
    assert "pat_" not in text  # tokens are made when they are used, not printed
    assert text.splitlines()[1:4] == [f"  {line}" for line in OUTPUTS["verdict"][:3]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_to_the_engine_and_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    program = tmp_path / "pulumi"
    program.write_text(
        "#!/bin/sh\ntrap 'sleep 0.3; echo ended in order; exit 7' INT\necho started\nwhile :; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    code = "import sys, local; sys.exit(local.run_engine({'PATH': sys.argv[1]}, 'up'))"
    running = subprocess.Popen(
        [sys.executable, "-c", code, f"{tmp_path}:{os.environ['PATH']}"],
        cwd=Path(local.__file__).parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "started\n"
    time.sleep(0.1)
    running.send_signal(number)
    rest, _ = running.communicate(timeout=20)
    assert (running.returncode, rest) == (7, "ended in order\n")
