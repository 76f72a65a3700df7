# SPDX-License-Identifier: Apache-2.0
"""The same verdict in every form: complete, escaped, the same bytes each time, and readable where it is read."""

from __future__ import annotations

import html.parser
import json
import os
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakepki
import pytest
import whole_bundles
from cryptography.hazmat.primitives import serialization
from cube_attestation import bundle as bundles
from cube_attestation import reports
from cube_attestation.bundle import Bundle
from cube_attestation.cli import main
from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput
from cube_attestation.reports import ear, junit, logs, sarif
from cube_attestation.reports import html as pages
from cube_attestation.verdict import Comparison, ItemVerdict, Reason, Verdict
from cube_attestation.verifier import verify
from hypothesis import given, settings
from hypothesis import strategies as st

AT = ["--at", "2026-11-24T12:00:00Z"]
NASTY = "<script>alert(1)</script>\"'&\x1b[31m\x00]]>"


def judged(world: fakepki.World) -> tuple[Bundle, Verdict]:
    bundle = world.receipted()
    return bundle, verify(bundle, world.the_policy(), now=fakepki.NOW)


def passed() -> tuple[Bundle, Verdict]:
    return judged(fakepki.World())


def refused() -> tuple[Bundle, Verdict]:
    return judged(fakepki.World(boot=fakepki.cmdline_changed()))


def forged() -> tuple[Bundle, Verdict]:
    return judged(fakepki.World(ak_certified="another-ak"))


def nasty() -> tuple[Bundle, Verdict]:
    """Text of an attacker's in every place that evidence can fill."""
    bundle, verdict = passed()
    item = ItemVerdict(
        f"item {NASTY}",
        refused=(Reason("claims.nonce_mismatch", NASTY),),
        compared=(Comparison(NASTY, NASTY, NASTY + "!"),),
        facts={NASTY: NASTY},
    )
    return bundle, replace(verdict, items=(*verdict.items, item), environment=NASTY, assumptions=(NASTY,))


@pytest.mark.parametrize("form", reports.FORMATS)
@pytest.mark.parametrize("case", [passed, refused, forged], ids=lambda case: case.__name__)
def test_the_same_verdict_gives_the_same_bytes(form: str, case: Any) -> None:
    bundle, verdict = case()
    again = bundles.load(bundles.dump(bundle))
    first = reports.render(form, verdict, bundle, subject="bundle.json")
    assert first == reports.render(form, verdict, again, subject="bundle.json")
    assert first.endswith(b"\n")


# EAR


def submods(verdict: Verdict) -> dict[str, Any]:
    found = json.loads(ear.render(verdict))
    assert found["eat_profile"] == "tag:ietf.org,2026:rats/ear#04"
    assert found["iat"] == int(fakepki.NOW.timestamp())
    assert set(found["ear_verifier_id"]) == {"developer", "build"}
    inside = found["submods"]
    assert isinstance(inside, dict)
    return inside


def test_ear_says_what_holds() -> None:
    _, verdict = passed()
    found = submods(verdict)
    assert set(found) == {"vtpm", "deployment"}
    # nobody shall take a software TPM for a confidential machine
    assert found["vtpm"]["ear_status"] == "warning"
    assert found["vtpm"]["ear_trustworthiness_vector"]["runtime-opaque"] == 32
    own = found["deployment"]["ear_verifier_claims"]
    assert (own["cube_passed"], own["cube_tier"], own["cube_freshness"]) == (True, "software", "receipt")
    assert found["vtpm"]["ear_appraisal_policy_ids"] == [verdict.policy]


@pytest.mark.parametrize(("kind", "names"), [("snp", {"cpu"}), ("tdx", {"cpu"}), ("azure", {"cpu", "vtpm"})])
def test_ear_affirms_hardware(kind: str, names: set[str]) -> None:
    whole = whole_bundles.ALL[kind]()
    found = submods(verify(whole.bundle, whole.policy, now=fakepki.NOW))
    assert set(found) == names | {"deployment"}
    assert {part["ear_status"] for part in found.values()} == {"affirming"}
    assert found["cpu"]["ear_trustworthiness_vector"]["hardware"] == 2


def test_ear_names_gpus_and_tokens() -> None:
    whole = whole_bundles.gpu()
    found = submods(verify(whole.bundle, whole.policy, now=fakepki.NOW))
    assert set(found) == {"vtpm", "gpu", "tokens", "deployment"}
    assert found["gpu"]["ear_status"] == found["tokens"]["ear_status"] == "affirming"


def test_ear_contradicts_what_does_not_hold() -> None:
    _, verdict = refused()
    found = submods(verdict)["vtpm"]
    assert (found["ear_status"], found["ear_trustworthiness_vector"]["executables"]) == ("contraindicated", 96)
    assert found["ear_verifier_claims"]["cube_reasons"][0]["code"] == "tpm.pcr.mismatch"
    _, verdict = forged()
    assert 99 in submods(verdict)["vtpm"]["ear_trustworthiness_vector"].values()
    whole = whole_bundles.snp()
    other = verify(whole.bundle, replace(whole.policy, snp=None), now=fakepki.NOW)
    assert submods(other)["cpu"]["ear_trustworthiness_vector"]["hardware"] == 99


def test_a_signed_ear_is_checked_by_anybody() -> None:
    from joserfc import jws
    from joserfc.jwk import ECKey

    _, verdict = passed()
    key = fakepki.ec_key("auditor")
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    token = ear.sign(verdict, pem)
    public = ECKey.import_key(fakepki.pem(key))
    read = jws.deserialize_compact(token.strip(), public, algorithms=["ES256"])
    assert read.headers()["typ"] == "eat+jwt"
    assert read.headers()["kid"] == fakepki.spki(key)
    assert read.payload == ear.render(verdict).strip()
    for bad in (b"x", fakepki.pem(key).encode(), rsa_pem()):
        with pytest.raises(BadInput):
            ear.sign(verdict, bad)


def rsa_pem() -> bytes:
    return fakepki.rsa_key("auditor").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# JUnit and SARIF


def test_junit_has_two_cases_for_each_item() -> None:
    _, verdict = refused()
    suite = ElementTree.fromstring(junit.render(verdict))[0]
    assert int(suite.get("tests", "")) == len(suite) == 2 * len(verdict.items) + 1
    failed = {(case.get("classname"), case.get("name")) for case in suite if case.find("failure") is not None}
    assert failed == {("tpm-quote", "acceptable"), ("verdict", "passed")}
    _, verdict = forged()
    suite = ElementTree.fromstring(junit.render(verdict))[0]
    skipped = [case.get("classname") for case in suite if case.find("skipped") is not None]
    assert "ak-certificate" in skipped


def test_sarif_names_every_reason() -> None:
    _, verdict = forged()
    found = json.loads(sarif.render(verdict, "a folder/bundle.json"))
    run = found["runs"][0]
    assert found["version"] == "2.1.0"
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    fails = [result for result in run["results"] if result["kind"] == "fail"]
    assert {result["ruleId"] for result in fails} == set(verdict.codes)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert place == "a%20folder/bundle.json"
        assert (result["level"] == "none") == (result["kind"] == "informational")
    assert run["invocations"][0]["exitCode"] == 2
    _, verdict = passed()
    notes = json.loads(sarif.render(verdict, "https://127.0.0.1:8444"))["runs"][0]["results"]
    assert [result["ruleId"] for result in notes] == list(verdict.assumptions)
    assert all(result["message"]["text"] != result["ruleId"] for result in notes)


PLAIN = {"html", "head", "meta", "title", "style", "body", "header", "footer", "main", "section", "div", "span"}
PLAIN |= {"details", "summary", "h1", "h2", "h3", "ul", "li", "code", "dl", "dt", "dd", "p", "b"}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_only_text(left: str, right: str) -> None:
    """Whatever a machine says: well-formed XML and JSON, and HTML with the page's own elements only."""
    refused = (Reason("claims.nonce_mismatch", right),)
    item = ItemVerdict(left, refused=refused, compared=(Comparison(left, left, right),))
    _, verdict = passed()
    verdict = replace(verdict, items=(item,))
    ElementTree.fromstring(junit.render(verdict))
    json.loads(sarif.render(verdict, right))
    page = Page(pages.render(verdict, Bundle(Collection({})), right).decode())
    assert page.tags <= PLAIN


def test_nothing_of_the_evidence_gets_out_of_its_place() -> None:
    bundle, verdict = nasty()
    ElementTree.fromstring(junit.render(verdict))
    json.loads(sarif.render(verdict, NASTY))
    json.loads(ear.render(verdict))
    page = reports.render("html", verdict, bundle, subject=NASTY).decode()
    assert Page(page).tags.isdisjoint({"script", "img", "iframe", "link", "object", "a"})
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert "\x00" not in page


# HTML


class Page(html.parser.HTMLParser):
    """What a browser would make of a page, as far as the tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1:] != ["style"]:
            self.words.append(data.strip())


@pytest.mark.parametrize("kind", whole_bundles.ALL)
def test_the_page_is_whole_and_loads_nothing(kind: str) -> None:
    whole = whole_bundles.ALL[kind]()
    verdict = verify(whole.bundle, whole.policy, now=fakepki.NOW)
    text = pages.render(verdict, whole.bundle, "bundle.json").decode()
    page = Page(text)
    assert page.words[1] == "PASSED: the evidence is authentic and the policy accepts it"
    assert {name for name, _ in page.attributes}.isdisjoint({"src", "href", "onclick", "onload", "action"})
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in str(dict(page.attributes).get("content")) or "default-src" in text
    for item in verdict.items:
        assert item.item in page.words
    assert all(any(code in word for word in page.words) for code in verdict.assumptions)
    logged = "ccel" in whole.bundle.evidence.items
    assert ("RTMR0: 1 event, no prediction by event" in page.words) == logged


def test_the_first_different_event_is_marked() -> None:
    bundle, verdict = refused()
    found = {register.name: register for register in logs.read(bundle).registers}
    diverging = [name for name, register in found.items() if register.diverges]
    assert diverging == ["PCR 11"]
    states = [row.state for row in found["PCR 11"].rows]
    at = states.index(logs.DIVERGES)
    assert set(states[:at]) == {logs.SAME}
    assert set(states[at + 1 :]) == {logs.AFTER}
    row = found["PCR 11"].rows[at]
    assert row.predicted is not None
    assert row.measured is not None
    assert ".cmdline" in row.predicted.words
    text = pages.render(verdict, bundle, "bundle.json").decode()
    assert text.count("<b>first difference</b>") == 1
    assert "PCR 11: another boot than the predicted one." in Page(text).words


def test_a_log_that_cant_be_read_is_said() -> None:
    bundle, verdict = passed()
    media = bundle.evidence.items["tcg-eventlog"].media_type
    broken = replace(bundle, evidence=bundle.evidence.with_item("tcg-eventlog", media, b"\0"))
    assert logs.read(broken).problems
    Page(pages.render(verdict, broken, "bundle.json").decode())
    shorter = replace(bundle, evidence=bundle.evidence.with_item("ccel", "application/vnd.cube.ccel", b"x"))
    assert len(logs.read(shorter).problems) == 1


# The command


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    whole = whole_bundles.local()
    (tmp_path / "bundle.json").write_bytes(bundles.dump(whole.bundle))
    (tmp_path / "policy.toml").write_text(whole.toml)
    key = fakepki.ec_key("auditor").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(key)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = ["verify", "bundle.json", "--policy", "policy.toml", *AT]


@pytest.mark.parametrize("form", reports.FORMATS)
def test_the_command_prints_and_writes_every_form(
    form: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, "--format", form]) == 0
    printed = capsys.readouterr().out
    assert main([*COMMAND, "--format", form, "--output", "out"]) == 0
    assert (files / "out").read_bytes() == printed.encode()


def test_the_command_signs(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--format", "ear", "--sign", "file:key.pem"]) == 0
    assert capsys.readouterr().out.count(".") == 2
    for bad in (
        ["--sign", "file:key.pem"],
        ["--format", "ear", "--sign", "key.pem"],
        ["--format", "ear", "--sign", "file:no"],
    ):
        assert main([*COMMAND, *bad]) == 3
    assert "file:KEY.pem" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_real_browser(width: int, tmp_path: Path) -> None:
    """Chromium lays it out: nothing is wider than a phone's window, and the screen is not blank."""
    browser = os.environ.get("CUBE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("no Chromium: install it, or set CUBE_CHROMIUM")
    bundle, verdict = refused()
    text = pages.render(verdict, bundle, "bundle.json").decode()
    # The page allows no script; the measuring copy lets one in. A frame, because windows have a least width.
    probe = """<script>
const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1);
const log = document.querySelector("details[open] .log");
const columns = getComputedStyle(log).gridTemplateColumns.split(" ").length;
parent.postMessage([wide.map(e => e.className || e.tagName).join(), innerWidth, columns].join("|"), "*");
</script></body>"""
    measured = text.replace("default-src 'none'", "script-src 'unsafe-inline'").replace("</body>", probe)
    frame = (
        "<title></title><script>onmessage = event => document.title = event.data</script>"
        f'<iframe src="measured.html" style="border:0" width="{width}" height="3000"></iframe>'
    )
    for name, content in (("page", text), ("measured", measured), ("frame", frame)):
        (tmp_path / f"{name}.html").write_text(content)
    common = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    common += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
    env = {**os.environ, "HOME": str(tmp_path)}
    dump = ["--dump-dom", "--window-size=1400,3000", (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run([*common, *dump], capture_output=True, timeout=120, check=True, env=env).stdout.decode()
    wide, inner, columns = dom.partition("<title>")[2].partition("</title>")[0].split("|")
    assert (wide, int(inner)) == ("", width)
    assert int(columns) == (2 if width > 640 else 1)
    shot = tmp_path / "page.png"
    take = [f"--screenshot={shot}", f"--window-size={width},2000", (tmp_path / "page.html").as_uri()]
    subprocess.run([*common, *take], capture_output=True, timeout=120, check=True, env=env)
    assert len(colours(shot.read_bytes())) > 20
    if keep := os.environ.get("CUBE_KEEP_SCREENSHOTS"):
        shutil.copy(shot, Path(keep) / f"report-{width}.png")


def colours(png: bytes) -> set[bytes]:
    """Different scan lines of a PNG: a blank page has one."""
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    raw = zlib.decompress(data)
    width = struct.unpack(">I", png[16:20])[0]
    depth = {2: 3, 6: 4}[png[25]]
    row = 1 + width * depth
    return {raw[i : i + row] for i in range(0, len(raw), row)}


def test_help_stays_light() -> None:
    code = (
        "import sys; from cube_attestation.cli import _parser; _parser().format_help();"
        "bad = {'cryptography', 'lxml', 'json', 'importlib.metadata'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
