# SPDX-License-Identifier: Apache-2.0
"""`make bench-verify`: what a verdict costs, beside yardsticks that are measured in the same run.

Every comparison takes turns within one run, so that whatever else this machine does hits both sides; of the many
samples the median counts (`--minimum`: the smallest). In-process times are CPU time of this one thread. Numbers
that were set on another machine are scaled by what plain P-384 verification and `import cryptography.x509` cost.

Evidence is signed by the fake vendors of tests/attestation, so that no two bundles are the same; TDX is measured
with real evidence too where the folder of CUBE_VECTORS (or ../shared/vectors) is there. Google's Go libraries are
asked through the program that `python tools/peers.py build` makes, where that was done.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/attestation"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import fake_nvidia
import fake_snp
import fake_tdx
import fake_x509
import fakepki
import peers
import whole_bundles
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation import bundle as bundles
from cube_attestation import verify as verify_bundle
from cube_attestation.nvidia import appraise as nvidia_appraise
from cube_attestation.snp import abi as snp_abi
from cube_attestation.snp import appraise as snp_appraise
from cube_attestation.snp import verify as snp_verify
from cube_attestation.tdx import verify as tdx_verify
from cube_attestation.tdx.collateral import Collateral, from_json

ROOT: Final = Path(__file__).resolve().parent.parent
# Installed programs come with bytecode: the first run, which does not count, writes what is lacking
COMPILED: Final = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
MANY: Final = 300  # pieces of evidence of one machine
P384_MS: Final = 0.45
IMPORT_MS: Final = 62.0
"""What the yardsticks cost on the machine for which limits in milliseconds were set."""


@dataclass
class Row:
    """One line: what was measured, in milliseconds here, and what counts against the limit."""

    name: str
    here: float
    counted: float
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        return self.counted <= self.limit


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@functools.cache
def caches() -> tuple[Callable[[], None], ...]:
    """What empties each cache of the verifier."""
    from cube_attestation.nvidia.chains import Verified

    modules = [module for name, module in sys.modules.items() if name.startswith("cube_attestation")]
    values = {id(value): value for module in modules for value in vars(module).values()}.values()
    functions = [value.cache_clear for value in values if hasattr(value, "cache_clear")]
    return (*functions, *(value.clear for value in values if isinstance(value, Verified)))


def clear_caches() -> None:
    """Forget everything that verifying keeps: as in a new process, except that code is imported."""
    for clear in caches():
        clear()


def milliseconds(work: Callable[[], object]) -> float:
    began = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began) / 1e6


def in_turns(works: dict[str, Callable[[], Callable[[], object]]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each work, round after round. What prepares a sample gives the part that is timed.

    Ends early when there is no more evidence that was not seen before: answers to signature checks are kept, so
    that to verify the same quote twice would measure nothing.
    """
    samples: dict[str, list[float]] = {name: [] for name in works}
    end = time.monotonic() + seconds
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(StopIteration):
            for turn in count():
                for name, prepare in works.items():
                    samples[name].append(milliseconds(prepare()))
                if turn >= 20 and time.monotonic() > end:
                    break
    finally:
        gc.enable()
    return {name: found[2:] for name, found in samples.items()}  # the first two fill caches


def fresh(works: Iterator[Callable[[], object]]) -> Callable[[], Callable[[], object]]:
    """Another piece of evidence of the same machine at every turn."""
    return lambda: next(works)


def cold(works: Iterator[Callable[[], object]]) -> Callable[[], Callable[[], object]]:
    """The same, of a machine that was never seen before."""

    def prepare() -> Callable[[], object]:
        clear_caches()
        return next(works)

    return prepare


def each(work: Callable[[Any], object], of: Sequence[Any]) -> Iterator[Callable[[], object]]:
    for one in of:
        yield functools.partial(work, one)


# What is verified


def p384() -> Callable[[], Callable[[], object]]:
    """Plain verifications, each of another signature: a processor learns its way through one that it sees again."""
    key = ec.generate_private_key(ec.SECP384R1())
    messages = [os.urandom(600) for _ in range(MANY)]
    signed = [(key.sign(message, ec.ECDSA(hashes.SHA384())), message) for message in messages]
    public, algorithm = key.public_key(), ec.ECDSA(hashes.SHA384())
    return fresh(each(lambda pair: public.verify(pair[0], pair[1], algorithm), signed * 20))


@dataclass
class Td:
    """Quotes of one platform and its collateral, also as other programs read it."""

    quotes: list[bytes]
    given: Collateral
    text: str
    anchors: tuple[str, ...] | None
    root: bytes | None  # DER
    now: datetime

    def ours(self, quote: bytes) -> None:
        anchors = {} if self.anchors is None else {"anchors": self.anchors}
        found = tdx_verify.verify(quote, self.given, now=self.now, **anchors)
        if not found.authentic or found.tcb is None:
            raise SystemExit(f"the TDX evidence does not verify: {found.forged}")

    def theirs(self) -> Callable[[bytes], object]:
        """dcap-qvl, with its collateral read beforehand like ours."""
        import dcap_qvl  # type: ignore[import-untyped]  # ships no types

        module: Any = dcap_qvl
        given, seconds = module.QuoteCollateralV3.from_json(self.text), int(self.now.timestamp())
        if self.root is None:
            return lambda quote: module.verify(quote, given, seconds)
        return lambda quote: module.verify_with_root_ca(quote, given, self.root, seconds)

    def request(self) -> dict[str, object]:
        asked: dict[str, object] = {
            "kind": "tdx",
            "now": self.now.isoformat(),
            "quote": base64.b64encode(self.quotes[0]).decode(),
            "collateral": json.loads(self.text),
        }
        if self.root is not None:
            body = base64.encodebytes(self.root).decode()
            asked["root"] = f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"
        return asked


def fake_td() -> Td:
    """As many TCB levels as Intel publishes for a platform."""
    base = fake_tdx.FakeTdx()
    levels = [base.level("UpToDate" if svn > 4 else "OutOfDate", sgx=bytes([svn] * 16)) for svn in range(20, 3, -1)]
    worlds = [
        # The FMSPC in lower case: go-tdx-guest compares it as text (docs/evidence/agreement.md).
        fake_tdx.FakeTdx(levels=levels, tcb_fmspc="00806f050000", td={"report_data": os.urandom(64)})
        for _ in range(MANY)
    ]
    first = worlds[0]
    collateral = first.collateral_json()
    return Td(
        [world.quote() for world in worlds],
        from_json(collateral.encode()),
        collateral,
        first.anchors,
        first.root().public_bytes(serialization.Encoding.DER),
        fake_tdx.NOW,
    )


def real_td() -> Td | None:
    folder = Path(os.environ.get("CUBE_VECTORS") or ROOT.parent / "shared/vectors") / "tdx/flashbots_attested-tls"
    quote, collateral = folder / "gcp-tdx-1782809233226668671", folder / "gcp-tdx-collateral.json"
    if not quote.is_file() or not collateral.is_file():
        return None
    text = collateral.read_text()
    return Td(
        [quote.read_bytes()], from_json(text.encode()), text, None, None, datetime(2026, 6, 30, 10, tzinfo=UTC)
    )


class Sev:
    """Reports of one processor."""

    def __init__(self) -> None:
        self.machine = fake_snp.FakeSnp()
        self.certificates = self.machine.leaf.pem + self.machine.ask.pem + self.machine.ark.pem
        self.crl, self.roots = self.machine.crl, self.machine.roots
        self.reports = [self.machine.with_fields(report_data=os.urandom(64)).report() for _ in range(MANY)]
        self.rules = snp_appraise.Rules(measurements=("11" * 48,), id_keys=("33" * 48,))

    def ours(self, report: bytes) -> None:
        endorsements = snp_verify.read_endorsements([self.certificates], [self.crl])
        found = snp_verify.verify(snp_abi.parse_report(report), endorsements, now=fake_x509.NOW, roots=self.roots)
        item = snp_appraise.appraise(found, self.rules)
        if not item.acceptable:
            raise SystemExit(f"the SNP evidence does not verify: {item}")

    def request(self) -> dict[str, object]:
        machine = self.machine
        return {
            "kind": "snp",
            "now": fake_x509.NOW.isoformat(),
            "report": base64.b64encode(self.reports[0]).decode(),
            "vcek": base64.b64encode(machine.leaf.der).decode(),
            "roots": {machine.product: (machine.ask.pem + machine.ark.pem).decode()},
            "crl": base64.b64encode(self.crl).decode(),
        }


class Gpu:
    """Reports of one H100 with driver and VBIOS manifests and OCSP responses."""

    def __init__(self) -> None:
        self.nonces = [os.urandom(32) for _ in range(MANY)]
        devices = [fake_nvidia.FakeDevice(nonce=nonce) for nonce in self.nonces]
        self.evidence = [(device.evidence(), nonce) for device, nonce in zip(devices, self.nonces, strict=True)]
        self.collateral = fake_nvidia.collateral(
            fake_nvidia.driver_rim(), fake_nvidia.vbios_rim(), devices=(devices[0],)
        )
        self.rules = fake_nvidia.rules()

    def ours(self, given: tuple[Any, bytes]) -> None:
        evidence, nonce = given
        items = nvidia_appraise.appraise((evidence,), self.collateral, self.rules, fake_nvidia.NOW, nonce=nonce)
        if not all(item.acceptable for item in items):
            raise SystemExit(f"the GPU evidence does not verify: {items}")


MACHINES: Final = {
    "a3-highgpu-1g (TDX, CCEL, H100)": whole_bundles.a3_highgpu_1g,
    "NCC40ads_H100_v5 (SNP, HCL, vTPM, H100)": whole_bundles.ncc40ads_h100_v5,
}


class Combined:
    """Bundle files of one machine type: each answers another nonce."""

    def __init__(self, make: Callable[..., whole_bundles.Whole], many: int) -> None:
        self.nonces = [os.urandom(32) for _ in range(many)]
        wholes = [make(nonce) for nonce in self.nonces]
        self.policy_text = wholes[0].toml
        self.policy = wholes[0].policy
        self.files = [bundles.dump(whole.bundle) for whole in wholes]

    def ours(self, at: int) -> None:
        bundle = bundles.load(self.files[at])
        verdict = verify_bundle(bundle, self.policy, now=fakepki.NOW, nonce=self.nonces[at])
        if verdict.exit_code:
            reasons = [(item.item, reason) for item in verdict.items for reason in item.reasons]
            raise SystemExit(f"the combined bundle does not pass: {reasons}")


# The program as a whole


def process(arguments: list[str]) -> float:
    """Milliseconds from start to end of a process."""
    began = time.perf_counter()
    subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, env=COMPILED)
    return (time.perf_counter() - began) * 1e3


def memory(arguments: list[str]) -> float:
    """The most memory that a process had, in MB. A small process starts it: the kernel counts its starter's too."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments], capture_output=True, check=True, env=COMPILED
    )
    return int(done.stdout) / 1024


def whole_process(machine: Combined, runs: int) -> tuple[list[float], list[float], float]:
    """Samples of `attestation verify` and of a plain import, in turns, and the most memory of the former."""
    importing, verifying = [], []
    with tempfile.TemporaryDirectory() as folder:
        bundle, policy = Path(folder, "bundle.json"), Path(folder, "policy.toml")
        bundle.write_bytes(machine.files[0])
        policy.write_text(machine.policy_text)
        command = str(Path(sys.executable).with_name("attestation"))
        at = fakepki.NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
        verify = [command, "verify", str(bundle), "--policy", str(policy), "--at", at]
        for _ in range(runs + 1):
            importing.append(process([sys.executable, "-c", "import cryptography.x509"]))
            verifying.append(process(verify))
        return verifying[1:], importing[1:], memory(verify)


def google(program: Path | None, requests: Sequence[dict[str, object]], seconds: float) -> dict[str, float]:
    """Milliseconds per verification of Google's Go libraries, by kind; empty if there is no such program."""
    if program is None:
        say("skipped: Google's Go libraries (python tools/peers.py build)")
        return {}
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(
        [program, "bench", str(seconds)], input=lines, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{program} failed: {done.stderr.strip()}")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer in answers:
        if not answer["accepted"]:
            raise SystemExit(f"{program} refuses the {answer['kind']} evidence: {answer['error']}")
    return {answer["kind"]: answer["ms"] for answer in answers}


# The table


def tdx_rows(
    name: str, td: Td, peer: float | None, take: Callable[[list[float]], float], seconds: float
) -> list[Row]:
    quotes = td.quotes * (MANY // len(td.quotes))
    works = {"cached": fresh(each(td.ours, td.quotes)), "cold": cold(each(td.ours, quotes))}
    found: dict[str, dict[str, list[float]]] = {}
    for which in works if len(td.quotes) > 1 else ("cold",):  # to see the only quote again would need no check
        pair = {which: works[which]}
        with contextlib.suppress(ImportError):
            pair["dcap-qvl"] = fresh(each(td.theirs(), quotes))
        found[which] = in_turns(pair, seconds)
    rows = []
    for which, samples in found.items():
        limit = {"cached": 1.0, "cold": 2.0}[which]
        ours = take(samples[which])
        if "dcap-qvl" in samples:
            rows.append(Row(f"{name}, {which}", ours, ours / take(samples["dcap-qvl"]), limit, "x dcap-qvl"))
        if peer:
            rows.append(Row(f"{name}, {which}", ours, ours / peer, 1.0, "x go-tdx-guest"))
    return rows


def rows(options: argparse.Namespace) -> Iterator[Row]:
    take: Callable[[list[float]], float] = min if options.minimum else statistics.median
    seconds = options.seconds
    say("signing evidence")
    td, sev, gpu, real = fake_td(), Sev(), Gpu(), real_td()
    theirs = google(peers.built(), [td.request(), sev.request()], seconds)
    say("TDX")
    yield from tdx_rows("TDX", td, theirs.get("tdx"), take, seconds)
    if real is not None:
        yield from tdx_rows("TDX, a real quote of GCP", real, None, take, seconds)
    else:
        say("skipped: a real quote (no folder of real evidence: set CUBE_VECTORS)")
    say("SNP and H100")
    found = in_turns(
        {
            "P-384": p384(),
            "SNP": fresh(each(sev.ours, sev.reports)),
            "H100": fresh(each(gpu.ours, gpu.evidence)),
        },
        seconds,
    )
    scale = P384_MS / take(found["P-384"])
    yield Row("plain P-384 verification", take(found["P-384"]), P384_MS, P384_MS, "ms scaled")
    yield Row("SNP, cached", take(found["SNP"]), take(found["SNP"]) * scale, 0.55, "ms scaled")
    if "snp" in theirs:
        yield Row("SNP, cached", take(found["SNP"]), take(found["SNP"]) / theirs["snp"], 1.0, "x go-sev-guest")
    yield Row("H100, cached", take(found["H100"]), take(found["H100"]) * scale, 0.75, "ms scaled")
    for name, make in MACHINES.items():
        say(name)
        machine = Combined(make, options.bundles)
        numbers = list(range(1, min(MANY, options.bundles)))
        machine.ours(0)
        samples = in_turns({"P-384": p384(), "cached": fresh(each(machine.ours, numbers))}, seconds)
        ours, scale = take(samples["cached"]), P384_MS / take(samples["P-384"])
        yield Row(f"{name}, cached", ours, ours * scale, 3.0, "ms scaled")
        samples = in_turns({"P-384": p384(), "cold": cold(each(machine.ours, numbers))}, seconds)
        ours, scale = take(samples["cold"]), P384_MS / take(samples["P-384"])
        yield Row(f"{name}, cold", ours, ours * scale, 10.0, "ms scaled")
        clear_caches()
        began = time.thread_time()
        for i in range(options.bundles):
            machine.ours(i)
        took = (time.thread_time() - began) * 1e3 * 1000 / options.bundles
        yield Row(f"{name}, 1,000 bundles, in seconds", took, took * scale / 1e3, 3.0, "s scaled")
        verifying, importing, most = whole_process(machine, options.processes)
        plain = min(importing)
        yield Row("  import cryptography.x509, as a process", plain, IMPORT_MS, IMPORT_MS, "ms scaled")
        whole = min(verifying)
        yield Row("  attestation verify, as a process", whole, whole * IMPORT_MS / plain, 150.0, "ms scaled")
        yield Row("  attestation verify, most memory", whole, most, 60.0, "MB")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="What a verdict costs, beside yardsticks measured in the same run."
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each in-process comparison")
    parser.add_argument("--bundles", type=int, default=1000, help="different bundles of each machine type")
    parser.add_argument("--processes", type=int, default=8, help="runs of the whole program")
    parser.add_argument("--minimum", action="store_true", help="count the smallest sample instead of the median")
    options = parser.parse_args()
    failed = 0
    print(f"{'':58} {'ms here':>9} {'counted':>9} {'limit':>7}")
    for row in rows(options):
        failed += not row.holds
        mark = "" if row.holds else "  over"
        print(f"{row.name:58} {row.here:9.3f} {row.counted:9.2f} {row.limit:7.2f} {row.unit}{mark}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
