# SPDX-License-Identifier: Apache-2.0
"""`make up`, `down`, `outputs`, `env` and what `test` needs: the local environment, from the checkout."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import chat
import environment
import guest_library
import peers
import preflight
from cube_images.errors import ImageError
from cube_stacks import keys, tokens
from cube_stacks.state import write_atomically
from environment import ENVIRONMENT, ROOT, EnvironmentProblem

FOR_TESTS = {"qemu-img": "qemu-utils", "chromium": "chromium"}
"""Programs that read exported disks and show reports in the tests, and their Debian packages."""
PROMPT = "What is the capital of France?"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_engine(variables: Mapping[str, str], *arguments: str) -> int:
    """Run a long Pulumi command in the foreground; an interrupt is the engine's to handle, and we wait for it."""
    process = subprocess.Popen(
        ["pulumi", *arguments, "--stack", ENVIRONMENT], cwd=ROOT, env={**os.environ, **variables}
    )

    def interrupted(number: int, _: object) -> None:
        # A terminal's Ctrl-C reaches the engine by itself; a signal that was sent to us alone doesn't.
        if number != signal.SIGINT or not sys.stdin.isatty():
            process.send_signal(signal.SIGINT)

    before = {
        number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_outputs(variables: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        environment.pulumi(variables, "stack", "output", "--json", "--show-secrets", "--stack", ENVIRONMENT)
    )
    return found


def up() -> int:
    """Bring the environment up, ask its model one question as one of its domains, and say how to go on."""
    began = time.monotonic()
    preflight.install(say)
    variables = environment.prepared(say)
    environment.release_stale_lock(variables, say)
    in_the_way = list(preflight.problems(ENVIRONMENT, environment.listen()))
    if in_the_way:
        raise EnvironmentProblem("\n       ".join(in_the_way))
    status = run_engine(variables, "up", "--yes", "--skip-preview", "--suppress-outputs")
    if status:
        say("\nnot up: see the errors above. `make up` goes on from here, `make down` takes everything away")
        return status
    outputs = read_outputs(variables)
    domain = outputs["domains"][0]
    token, _ = tokens.issue(
        keys.open_key(keys.domain_key(ENVIRONMENT, domain["name"])),
        ENVIRONMENT,
        domain["id"],
        tokens.SCOPES,
        timedelta(minutes=10),
        datetime.now(UTC),
    )
    ca = environment.folder() / "ca.pem"
    write_atomically(ca, outputs["ca"].encode())
    base = f"{outputs['endpoint'].rstrip('/')}/{domain['id']}/v1"
    print(f"\n{domain['name']} asks {domain['models'][0]}: {PROMPT}", flush=True)
    for part in chat.ask(base, outputs["ca"], token, domain["models"][0], PROMPT, say):
        print(part, end="", flush=True)
    print(f"\n\n{summary(outputs, base, ca)}\n\nup in {time.monotonic() - began:.0f} s", flush=True)
    return 0


def summary(outputs: Mapping[str, Any], base: str, ca: Path) -> str:
    """Verdict, endpoint, and snippets that work as pasted into a shell in the checkout."""
    domain = outputs["domains"][0]
    model = domain["models"][0]
    verdict = "\n".join(f"  {line}" for line in outputs["verdict"][:3])
    question = [{"role": "user", "content": PROMPT}]
    body = json.dumps({"model": model, "messages": question, "max_tokens": chat.MAX_TOKENS, "temperature": 0})
    return f"""\
Verdict
{verdict}

Endpoint: {outputs["endpoint"]} (CA: {ca})

With curl:

  curl -sS --cacert {ca} {base}/chat/completions \\
    -H "Authorization: Bearer $(make -s token DOMAIN={domain["name"]})" \\
    -H 'Content-Type: application/json' -d '{body}'

With the OpenAI SDK:

  TOKEN=$(make -s token DOMAIN={domain["name"]}) .venv/bin/python -c '
import os, ssl, openai
client = openai.OpenAI(
    base_url="{base}", api_key=os.environ["TOKEN"],
    http_client=openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile="{ca}")),
)
answer = client.chat.completions.create(
    model="{model}", max_tokens={chat.MAX_TOKENS}, temperature=0, messages={json.dumps(question)}
)
print(answer.choices[0].message.content)'"""


def down() -> int:
    """Remove everything that `up` started; keys, caches and the stack's history stay."""
    variables = environment.prepared(say)
    environment.release_stale_lock(variables, say)
    return run_engine(variables, "destroy", "--yes", "--skip-preview")


def main() -> int:
    parser = argparse.ArgumentParser(prog="local", description=__doc__)
    parser.add_argument("command", choices=["prepare", "up", "down", "outputs", "env"])
    command = parser.parse_args().command
    try:
        if command == "up":
            return up()
        if command == "down":
            return down()
        if command == "prepare":
            wanted = [package for program, package in FOR_TESTS.items() if shutil.which(program) is None]
            preflight.install(say, [*guest_library.build_packages(), *wanted])
            environment.prepared(say)
            guest_library.install(say)
            peers.build(say)
        elif command == "outputs":
            print(json.dumps(read_outputs(environment.prepared(say)), indent=2))
        else:
            print(environment.exports(say), end="")
    except (EnvironmentProblem, ImageError, chat.NoAnswer, keys.KeyFailure) as problem:
        say(f"error: {problem}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
