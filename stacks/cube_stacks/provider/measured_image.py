# SPDX-License-Identifier: Apache-2.0
"""`MeasuredImage`: an image built from its lock, or one that was built elsewhere and is named by its digest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cube_attestation import dsse
from cube_attestation.errors import AttestationError
from cube_images import build, flavour, verification
from cube_images.build import Image, Progress
from cube_images.errors import ImageError
from cube_images.run import Cancelled, RunError, run

from cube_stacks import keys
from cube_stacks.provider.base import UNKNOWN, Context, Failed, Properties, Resource, State, Unhealthy

_BUILD = "build"


class MeasuredImage(Resource):
    token = "cube-confidential:index:MeasuredImage"  # noqa: S105
    refresh_before_update = True
    replace_on = frozenset({"source"})

    def check(self, inputs: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        source = inputs["source"]
        if source is UNKNOWN:
            return inputs, []
        kind, rest = _split(source)
        try:
            if kind == _BUILD:
                if rest not in flavour.names():
                    return inputs, [
                        ("source", f"there is no flavour {rest!r}; there is {', '.join(flavour.names())}")
                    ]
                # An input of its own, so that a change of code, lock or template is a difference.
                return inputs | {"definition": build.definition_digest(rest)}, []
            _manifest(rest)
        except ImageError as error:
            return inputs, [("source", str(error))]
        return inputs, []

    def preview(self, inputs: Properties) -> Properties:
        image = _found(inputs)
        return {} if image is None else _outputs(image)

    def preview_note(self, inputs: Properties) -> str:
        return "predicted measurements are unknown: not built" if _found(inputs) is None else ""

    def create(self, ctx: Context, inputs: Properties) -> State:
        kind, rest = _split(inputs["source"])
        image = _built(ctx, rest, inputs["imageKey"]) if kind == _BUILD else _verified(rest, inputs["imageKey"])
        return State(rest, _outputs(image))

    def update(self, ctx: Context, id: str, old_outputs: Properties, inputs: Properties) -> State:  # noqa: ARG002
        return State(id, self.create(ctx, inputs).outputs)

    def read(self, ctx: Context, id: str, inputs: Properties, outputs: Properties) -> State | None:  # noqa: ARG002
        """Gone with its files. Whether a disk image was changed is for the build, and for the machine itself."""
        try:
            image = build.open_image(Path(outputs["directory"]))
        except (KeyError, ImageError):
            return None
        if not image.disk.is_file() or not image.manifest.is_file():
            return None
        try:
            envelope = json.loads(image.manifest.read_bytes())
            dsse.verify(envelope, dsse.IMAGE_MANIFEST, [keys.open_key(inputs["imageKey"]).keyid])
        except (ValueError, AttestationError) as error:
            # The cache is shared: another environment of this user may have signed the same image with its key.
            raise Unhealthy(
                id, outputs, [f"the manifest is not signed by this environment's key: {error}"]
            ) from error
        return State(id, outputs)

    def delete(self, ctx: Context, id: str, outputs: Properties) -> None:
        """Nothing: images are in the user's cache, under the digest of what they are made of."""


def _split(source: str) -> tuple[str, str]:
    kind, _, rest = source.partition(":")
    return kind, rest


def _found(inputs: Properties) -> Image | None:
    """The image, if it can be told without building."""
    source = inputs["source"]
    if source is UNKNOWN:
        return None
    kind, rest = _split(source)
    return build.built(rest) if kind == _BUILD else build.open_image(_manifest(rest).parent)


def _outputs(image: Image) -> Properties:
    return {
        "imageDigest": image.payload["image"],
        "manifest": str(image.manifest),
        "manifestDigest": image.digest,
        "directory": str(image.folder),
        "pcrs": dict(image.pcrs),
        "definition": image.payload["definition"],
    }


def _built(ctx: Context, name: str, key: str) -> Image:
    """Build in a process group of its own, which is gone when the user cancels."""

    def show(line: str) -> None:
        try:
            ctx.progress(Progress(**json.loads(line)).line())
        except (ValueError, TypeError):
            return  # no progress, but a part of an error, which comes back as a whole

    command = [sys.executable, "-m", "cube_images.cli", "build", name, "--key", key, "--progress", "json"]
    try:
        run(command, on_line=show, cancel=ctx.cancelled, timeout=ctx.timeout_s)
    except Cancelled as error:
        raise Failed("CANCELLED", "the image build was cancelled; nothing half-made was left behind") from error
    except RunError as error:
        lines = [line for line in error.output.splitlines() if line.strip() and not line.startswith("{")]
        said = lines[-1].removeprefix("measured-image: ") if lines else str(error)
        raise Failed("FAILED_PRECONDITION", f"the image could not be built: {said}") from error
    image = build.built(name)
    if image is None:
        raise Failed("FAILED_PRECONDITION", "the image's definition changed while it was built; run it again")
    return image


def _manifest(rest: str) -> Path:
    """The path in `<path>@sha256:<digest>`, whose image has that digest. Raises ImageError."""
    path, _, digest = rest.rpartition("@")
    image = build.open_image(Path(path).parent)
    if image.digest != digest:
        raise ImageError(
            f"the manifest at {path} has the digest {image.digest}", f"the configuration names {digest}"
        )
    return image.manifest


def _verified(rest: str, key: str) -> Image:
    """The image beside a manifest, after the signature and every file were checked."""
    try:
        path = _manifest(rest)
        verification.verify(path, keys.open_key(key).keyid)
        return build.open_image(path.parent)
    except (ImageError, AttestationError) as error:
        raise Failed("FAILED_PRECONDITION", str(error)) from error
