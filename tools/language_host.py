#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""pulumi-language-python for hosts without the official one: runs a Python program for the engine.

Installed by `tools/engine.py` beside the engine and `pulumi-language-python-exec`, which it starts. It runs with
the first python3 on PATH, so that `eval "$(make -s env)"` gives it the environment with Pulumi's SDK.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, Final

try:
    import grpc
    from google.protobuf import empty_pb2, json_format
    from pulumi import _version
    from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2
except ImportError as missing:
    sys.exit(f'{missing}: Pulumi\'s SDK is not on this python3. In the checkout run: eval "$(make -s env)"')

REPORTED: Final = 32  # the program's exit status when it has already told the user what went wrong
EXEC: Final = "pulumi-language-python-exec"
UNLIMITED: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

# Run by the program's interpreter: its version, distributions, and the plugins that their packages ask for.
LOOK: Final = """
import importlib.metadata, json, pathlib, sys, sysconfig
site = pathlib.Path(sysconfig.get_path("purelib"))
json.dump({
    "executable": sys.executable,
    "version": sys.version.split()[0],
    "distributions": sorted({d.name: d.version for d in importlib.metadata.distributions() if d.name}.items()),
    "plugins": [json.loads(p.read_text()) for p in sorted(site.glob("*/pulumi-plugin.json"))],
}, sys.stdout)
"""


class Refused(Exception):
    """A project setting that this host can't serve."""


def interpreter(root: Path, options: Mapping[str, Any]) -> str:
    """The Python of `options.virtualenv` (relative to the project), else the one that runs this host."""
    toolchain = options.get("toolchain") or "pip"
    if toolchain != "pip":
        raise Refused(
            f"runtime option toolchain: {toolchain} needs the official Pulumi CLI; use pip, or install it"
        )
    name = options.get("virtualenv")
    if not name:
        return sys.executable
    python = root / str(name) / "bin" / "python"
    if not python.exists():
        raise Refused(f"runtime option virtualenv: {python} is not there; make the environment, or drop the option")
    return str(python)


def look(python: str) -> dict[str, Any]:
    """What `LOOK` finds in an interpreter."""
    done = subprocess.run([python, "-c", LOOK], capture_output=True, check=False, timeout=60)
    if done.returncode:
        raise Refused(f"{python} does not run: {done.stderr.decode(errors='replace').strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Host(language_pb2_grpc.LanguageRuntimeServicer):
    """Serves the language protocol (pulumi/language.proto) for Python programs."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.programs: set[subprocess.Popen[bytes]] = set()
        self.stopping = False
        self.lock = threading.Lock()

    def stop(self) -> None:
        """End the programs that run."""
        with self.lock:
            self.stopping = True
            programs = list(self.programs)
        for program in programs:
            program.terminate()

    def Handshake(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        self.engine = request.engine_address or self.engine
        return language_pb2.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return plugin_pb2.PluginInfo(version=str(_version.version))

    def RuntimeOptionsPrompts(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return language_pb2.RuntimeOptionsResponse()

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        self.stop()
        return empty_pb2.Empty()

    def About(self, request: Any, context: Any) -> Any:
        found = self._look(request.info, context)
        return language_pb2.AboutResponse(executable=found["executable"], version=found["version"])

    def GetProgramDependencies(self, request: Any, context: Any) -> Any:
        found = self._look(request.info, context)
        return language_pb2.GetProgramDependenciesResponse(
            dependencies=[
                language_pb2.DependencyInfo(name=name, version=version) for name, version in found["distributions"]
            ]
        )

    def GetRequiredPackages(self, request: Any, context: Any) -> Any:
        found = self._look(request.info, context)
        return language_pb2.GetRequiredPackagesResponse(
            packages=[
                plugin_pb2.PackageDependency(
                    kind="resource",
                    name=plugin.get("name", ""),
                    version=plugin.get("version", ""),
                    server=plugin.get("server", ""),
                )
                for plugin in found["plugins"]
                if plugin.get("resource")
            ]
        )

    def Run(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        try:
            python = interpreter(Path(request.info.root_directory or request.pwd), _options(request.info))
        except Refused as refused:
            return language_pb2.RunResponse(error=str(refused))
        arguments = {
            "--monitor": request.monitor_address,
            "--engine": self.engine,
            "--project": request.project,
            "--root_directory": request.info.root_directory,
            "--stack": request.stack,
            "--organization": request.organization,
            "--pwd": request.pwd,
            "--dry_run": "true" if request.dryRun else "false",
            "--parallel": str(request.parallel),
        }
        command = [
            *(python, "-u", str(Path(__file__).resolve().with_name(EXEC))),
            *(word for name, value in arguments.items() if value for word in (name, value)),
            request.info.entry_point or ".",
            *request.args,
        ]
        environment = {
            **os.environ,
            "PULUMI_CONFIG": json.dumps(dict(request.config)),
            "PULUMI_CONFIG_SECRET_KEYS": json.dumps(list(request.configSecretKeys)),
        }
        with self.lock:
            if self.stopping:
                return language_pb2.RunResponse(bail=True)
            # Its output is ours, which the engine shows beside the stack.
            program = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
            self.programs.add(program)
        try:
            status = program.wait()
        finally:
            with self.lock:
                self.programs.discard(program)
        if status == 0:
            return language_pb2.RunResponse()
        if status == REPORTED or self.stopping:
            return language_pb2.RunResponse(bail=True)
        how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
        return language_pb2.RunResponse(error=f"Program exited with {how}")

    def _look(self, info: Any, context: Any) -> dict[str, Any]:
        try:
            return look(interpreter(Path(info.root_directory), _options(info)))
        except Refused as refused:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refused))
            raise


def _options(info: Any) -> dict[str, Any]:
    return dict(json_format.MessageToDict(info.options))


def main(arguments: list[str]) -> int:
    """Serve until the engine stops us or is gone. The first line on standard output is our port."""
    addresses = [argument for argument in arguments if not argument.startswith("-")]
    if not addresses:
        sys.stderr.write("usage: pulumi-language-python [flags] ENGINE_ADDRESS (the engine starts it)\n")
        return 64
    host = Host(addresses[-1])
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=UNLIMITED)
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server)
    port = server.add_insecure_port("127.0.0.1:0")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    parent = os.getppid()
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    while not stop.wait(0.5) and os.getppid() == parent:
        pass
    host.stop()
    server.stop(3).wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
