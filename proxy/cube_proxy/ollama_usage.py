# SPDX-License-Identifier: Apache-2.0
"""Token counts in Ollama's answers, of every API and streamed or not, as they pass. Pure."""

from __future__ import annotations

import re

PROMPT_TRAILER = "x-cube-prompt-tokens"
COMPLETION_TRAILER = "x-cube-completion-tokens"
STREAMS = frozenset({"/v1/chat/completions", "/v1/completions"})

_PROMPT = ("prompt_eval_count", "prompt_tokens", "input_tokens")
_COMPLETION = ("eval_count", "completion_tokens", "output_tokens")
# a bare quote after a comma or brace begins a member's name: inside a string it would be escaped
_COUNT = re.compile(rf'[,{{]"({"|".join(_PROMPT + _COMPLETION)})":([0-9]{{1,12}})(?=[,}}])'.encode())
_LONGEST = 64


class Counter:
    """Reads the pieces of an answer, however they are cut; the last counts are the request's."""

    def __init__(self) -> None:
        self._tail = b""
        self._counts: dict[str, int] = {}

    def feed(self, piece: bytes) -> None:
        """Look at the next piece of the answer."""
        whole = self._tail + piece
        for name, value in _COUNT.findall(whole):
            self._counts[name.decode()] = int(value)
        self._tail = whole[-_LONGEST:]

    def trailers(self) -> bytes:
        """What the answer said, as the trailer section of a chunked body, without the line that ends it."""
        lines = ""
        for trailer, names in ((PROMPT_TRAILER, _PROMPT), (COMPLETION_TRAILER, _COMPLETION)):
            found = [self._counts[name] for name in names if name in self._counts]
            if found:
                lines += f"{trailer}: {found[0]}\r\n"
        return lines.encode()


class WithoutUsage:
    """Takes the event with the counts, which the client did not ask for, out of a stream of server-sent events."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """The whole events so far; the rest is held."""
        *events, self._held = (self._held + piece).split(b"\n\n")
        return b"".join(event + b"\n\n" for event in events if not _is_usage(event))

    def end(self) -> bytes:
        """What was held when the stream ended."""
        held, self._held = self._held, b""
        return held


def _is_usage(event: bytes) -> bool:
    return event.startswith(b"data: {") and b'"choices":[]' in event and b'"usage":{' in event


def ask_for_usage(value: dict[str, object], target: str) -> bool:
    """Make a streamed call end with its counts; whether they have to be taken out again. Changes ``value``."""
    if target not in STREAMS or value.get("stream") is not True:
        return False
    options = value.get("stream_options")
    said = options if isinstance(options, dict) else {}
    # the last one counts, and its case does not
    kept = {name: member for name, member in said.items() if name.casefold() != "include_usage"}
    value["stream_options"] = {**kept, "include_usage": True}
    return said.get("include_usage") is not True
