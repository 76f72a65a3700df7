# SPDX-License-Identifier: Apache-2.0
"""The `measured-image` command. Exit status: 0 done, 1 failed, 2 does not verify, 64 usage, 130 interrupted."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cube_attestation import dsse
from cube_attestation.errors import AttestationError, NotAuthentic

from cube_images import flavour, manifest, predict
from cube_images.errors import ImageError

OK, FAILED, NOT_AUTHENTIC, USAGE, INTERRUPTED = 0, 1, 2, 64, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def _lock(arguments: argparse.Namespace) -> int:
    from cube_images import lock, resolve

    try:
        old = lock.load(arguments.flavour)
    except ImageError:
        old = None
    new = resolve.resolve(arguments.flavour, lambda line: print(line, file=sys.stderr, flush=True))
    path = lock.store(new, shipped=True)
    changes = lock.changes(old, new) if old else []
    for line in changes:
        print(line)
    print(f"{path}: {len(new.packages())} packages, {len(changes)} changed, sha256:{new.digest()}")
    return OK


def _build(arguments: argparse.Namespace) -> int:
    from cube_images import build, keys

    def lines(progress: build.Progress) -> None:
        print(progress.line(), file=sys.stderr, flush=True)

    def objects(progress: build.Progress) -> None:
        print(json.dumps(asdict(progress)), file=sys.stderr, flush=True)

    report: Callable[[build.Progress], None] = objects if arguments.progress == "json" else lines
    signer = keys.open_key(arguments.key or keys.make_default())
    image = build.build(arguments.flavour, signer, report)
    if arguments.output:
        image = build.copy(image, arguments.output)
    print(f"image    {image.digest}")
    print(f"folder   {image.folder}")
    print(f"root     {image.payload['root']}")
    for pcr, value in sorted(image.pcrs.items(), key=lambda item: int(item[0])):
        print(f"PCR {pcr:>2}   {value}")
    return OK


def _folder(arguments: argparse.Namespace) -> Path:
    from cube_images import build

    if arguments.folder:
        return Path(arguments.folder)
    image = build.built("local")
    if image is None:
        raise ImageError("the image of the current definition was not built", "run `measured-image build local`")
    return image.folder


def _registers(arguments: argparse.Namespace) -> int:
    from cube_attestation import jcs

    from cube_images.platforms import azure, gcp, local

    launch: bytes | None = None
    if arguments.launch:
        try:
            raw = arguments.launch.read_bytes()
        except OSError as error:
            raise ImageError(
                f"{arguments.launch} can't be read: {error.strerror}", "name a launch document"
            ) from error
        where = str(arguments.launch)
        launch = dsse.peek(jcs.loads(raw, where=where), dsse.LAUNCH, where=where).raw
    uki, head = predict.parts(_folder(arguments))
    secure = arguments.secure_boot == "on"
    if arguments.target == "local":
        if secure:
            raise ImageError("the local target has Secure Boot off", "leave --secure-boot out")
        found = local.registers(uki, head, launch)
    else:
        module = {"gcp": gcp, "azure": azure}[arguments.target]
        found = module.registers(uki, head, launch, secure_boot=secure)
    print(json.dumps(found.to_json(), indent=1) if arguments.json else "\n".join(found.lines()))
    return OK


def _predict(arguments: argparse.Namespace) -> int:
    if arguments.target:
        return _registers(arguments)
    found = predict.predict(_folder(arguments))
    if arguments.json:
        print(json.dumps(manifest.reference(found), indent=1))
        return OK
    values = predict.pcrs(found)
    for pcr in sorted(values):
        print(f"PCR {pcr:>2}  {values[pcr].hex()}")
        for item in found:
            if item.pcr == pcr:
                print(f"        {item.digest.hex()[:16]}…  {item.what}  [{item.source}]")
    return OK


def _show(arguments: argparse.Namespace) -> int:
    from cube_images import build

    image = build.open_image(_folder(arguments))
    if arguments.json:
        print(json.dumps(image.payload, indent=1, sort_keys=True))
        return OK
    for name in ("id", "flavour", "image", "uki", "uki_authenticode", "root", "lock", "definition"):
        print(f"{name:<17}{image.payload[name]}")
    print(f"{'packages':<17}{len(image.payload['packages'])}")
    for item in image.payload["binaries"]:
        print(f"{item['path']} {item['origin']} from {item['from']}")
    for pcr, value in sorted(image.pcrs.items(), key=lambda pair: int(pair[0])):
        print(f"{f'PCR {pcr}':<17}{value}")
    return OK


def _sign(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from cube_attestation import times

    from cube_images import keys
    from cube_images.provenance import described, statement

    image = described.load(Path(arguments.folder))
    signer = keys.open_key(arguments.key or keys.make_default())
    expires = statement.sign(
        image, signer, now=datetime.now(UTC), days=arguments.days, builder=arguments.builder or statement.UNHOSTED
    )
    print(f"image    {image.digest}")
    print(f"signer   {dsse.spki_digest(signer.spki)}")
    print(f"good until {times.format_time(expires)}")
    return OK


def _export(arguments: argparse.Namespace) -> int:
    from cube_images.provenance import described
    from cube_images.release import export

    image = described.load(_folder(arguments))
    for warning in export.warnings(image, arguments.target):
        _say(f"warning: {warning}")
    found = export.export(image, arguments.target, arguments.output, _say)
    print(json.dumps(found, indent=1))
    return OK


def _publish(arguments: argparse.Namespace) -> int:
    from cube_images.provenance import described
    from cube_images.release import publish

    image = described.load(_folder(arguments))
    index = publish.publish(image, arguments.store, _say)
    print(f"image {image.digest}\nindex {index}")
    return OK


def _fetch(arguments: argparse.Namespace) -> int:
    from cube_images.release import publish

    image = publish.fetch(arguments.store, arguments.digest, arguments.output, _say)
    print(f"image  {image.digest}\nfolder {image.folder}")
    return OK


def _verify(arguments: argparse.Namespace) -> int:
    from cube_images.provenance import described, reproduce

    found = reproduce.verify(described.load(_folder(arguments)), _say, clean=arguments.clean)
    print("\n".join(found.lines))
    print("reproduced bit for bit" if found.same else "NOT reproduced")
    return OK if found.same else NOT_AUTHENTIC


def _verify_manifest(arguments: argparse.Namespace) -> int:
    from cube_images import verification

    for line in verification.verify(Path(arguments.manifest), arguments.key):
        print(line)
    return OK


def _diff(arguments: argparse.Namespace) -> int:
    from cube_images.provenance import compare, described, rootfiles

    before, after = (described.load(Path(name)) for name in (arguments.before, arguments.after))
    files: tuple[compare.Change, ...] = ()
    if arguments.files:
        print("unpacking both root file systems", file=sys.stderr, flush=True)
        files = compare.changes(rootfiles.table(before), rootfiles.table(after))
    found = compare.compare(before, after, files)
    if arguments.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print("\n".join(found.lines()))
    return OK


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _sbom(arguments: argparse.Namespace) -> int:
    from cube_images.provenance import described, inventory, sbom

    image = described.load(_folder(arguments))
    print(json.dumps(sbom.bom(image, inventory.components(image, _say)), indent=1, sort_keys=True))
    return OK


def _licences(arguments: argparse.Namespace) -> int:
    from cube_images.provenance import described, inventory, licences

    for name in arguments.model:
        licences.require_model(name, arguments.accept)
    found = inventory.components(described.load(_folder(arguments)), _say)
    if arguments.json:
        print(json.dumps(licences.report(found, arguments.model), indent=1))
    else:
        print("\n".join(licences.lines(found, arguments.model)))
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="measured-image", description="Build machine images whose measurements are known beforehand."
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    flavours = flavour.names()

    def add(name: str, call: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(call=call)
        return command

    lock = add("lock", _lock, "Choose exact versions and hashes anew, from the host's own mirror.")
    lock.add_argument("flavour", nargs="?", default="local", choices=flavours)
    build = add("build", _build, "Build an image from its lock, unless the cache has it.")
    build.add_argument("flavour", nargs="?", default="local", choices=flavours)
    build.add_argument("--key", metavar="file:PATH", help="key that signs the manifest (default: one of this user)")
    build.add_argument("--output", type=Path, metavar="DIR", help="also copy the result there")
    build.add_argument(
        "--progress", choices=("text", "json"), default="text", help="how progress is written (stderr)"
    )
    for name, call, text in (
        ("predict", _predict, "Predict the PCRs from the image alone, with the events in words."),
        ("show", _show, "Show the manifest of a built image."),
    ):
        command = add(name, call, text)
        command.add_argument("folder", nargs="?", help="folder of a built image (default: the last one of `local`)")
        command.add_argument("--json", action="store_true", help="write JSON")
        if name == "predict":
            command.add_argument(
                "--target",
                choices=("gcp", "azure", "local"),
                help="registers of that target's machines, unknown ones too",
            )
            command.add_argument("--launch", type=Path, metavar="FILE", help="launch document, for PCR 8")
            command.add_argument("--secure-boot", choices=("on", "off"), default="off", help="of the machine")
    for name, call, text in (
        ("sbom", _sbom, "Write the bill of materials of a built image: CycloneDX 1.6, JSON."),
        ("licences", _licences, "Say what is under which licence, and whose source has to be offered."),
    ):
        command = add(name, call, text)
        command.add_argument("folder", nargs="?", help="built image or manifest (default: the last one of `local`)")
        if name == "licences":
            command.add_argument("--json", action="store_true", help="write JSON")
            command.add_argument("--model", action="append", default=[], help="also a model that is served from it")
            command.add_argument("--accept", action="append", default=[], help="SPDX id of a model's licence")
    diff = add("diff", _diff, "Say what differs between two images, and which measurements move with it.")
    for name in ("before", "after"):
        diff.add_argument(name, help="manifest, or folder of a built image")
    diff.add_argument("--files", action="store_true", help="compare the files of both roots too (needs root)")
    diff.add_argument("--json", action="store_true", help="write JSON")
    sign = add("sign", _sign, "Sign a built image anew: its manifest with an expiry, and its provenance.")
    sign.add_argument("folder", help="folder of a built image, such as `build --output` makes")
    sign.add_argument("--days", type=int, required=True, help="how long the manifest is good")
    sign.add_argument("--key", metavar="file:PATH", help="key that signs (default: one of this user)")
    sign.add_argument(
        "--builder", metavar="URI", help="what built it, as SLSA has it (default: an unhosted builder)"
    )
    export = add("export", _export, "Write the disk as a target takes it, with a description beside it.")
    export.add_argument("target", choices=("gcp", "azure", "qcow2"))
    export.add_argument("folder", nargs="?", help="folder of a built image (default: the last one of `local`)")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write")
    publish = add(
        "publish", _publish, "Publish a signed image into a folder, by content; goes on where it stopped."
    )
    publish.add_argument("folder", nargs="?", help="folder of a built image (default: the last one of `local`)")
    publish.add_argument("--store", type=Path, required=True, metavar="DIR", help="the folder to publish into")
    fetch = add("fetch", _fetch, "Fetch a published image by its digest, checking every file.")
    fetch.add_argument("digest", help="the image: sha256:…")
    fetch.add_argument("--store", type=Path, required=True, metavar="DIR", help="the folder it was published into")
    fetch.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to put the image")
    verify = add("verify", _verify, "Build an image again from its lock and compare bit for bit.")
    verify.add_argument("folder", nargs="?", help="built image or manifest (default: the last one of `local`)")
    verify.add_argument("--clean", action="store_true", help="make compilers' trees and Ollama anew too (minutes)")
    check = add(
        "verify-manifest", _verify_manifest, "Check a manifest's signature, and the files beside it against it."
    )
    check.add_argument("manifest", help="manifest.json, or the folder that holds it")
    check.add_argument(
        "--key", required=True, help="allowed signer: sha256:… of its public key, or a file with it in PEM"
    )
    return parser


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; errors are one line on standard error."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        call: Callable[[argparse.Namespace], int] = arguments.call
        return call(arguments)
    except KeyboardInterrupt:
        print("measured-image: interrupted, nothing half-made was left behind", file=sys.stderr)
        return INTERRUPTED
    except NotAuthentic as error:
        print(f"measured-image: {error}", file=sys.stderr)
        return NOT_AUTHENTIC
    except (ImageError, AttestationError) as error:
        print(f"measured-image: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        return FAILED


if __name__ == "__main__":
    raise SystemExit(main())
