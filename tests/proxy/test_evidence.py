# SPDX-License-Identifier: Apache-2.0
"""The bound on waiting for the TPM, and requests for evidence from anybody."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from cube_proxy import evidence
from cube_proxy.evidence import MAX_WAITING, TpmQueue
from cube_proxy.http import HttpError
from hypothesis import given
from hypothesis import strategies as st


def test_one_works_four_wait_the_next_is_told_to_come_back() -> None:
    async def go() -> tuple[int, list[int]]:
        queue, release, done = TpmQueue(), asyncio.Event(), 0

        async def work() -> None:
            nonlocal done
            async with queue.turn():
                await release.wait()
                done += 1

        tasks = [asyncio.create_task(work()) for _ in range(1 + MAX_WAITING)]
        await asyncio.sleep(0)
        refused = []
        for _ in range(3):
            with pytest.raises(HttpError) as caught:
                await work()
            refused.append(caught.value.status)
        tasks[2].cancel()  # a caller that leaves makes room
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(work()))
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return done, refused

    assert asyncio.run(go()) == (1 + MAX_WAITING, [429, 429, 429])


@pytest.mark.parametrize("size", [16, 32, 64])
def test_nonces(size: int) -> None:
    nonce = bytes(range(size))
    assert evidence.parse_request(json.dumps({"nonce": base64.b64encode(nonce).decode()}).encode()) == nonce


@given(st.integers(0, 200).filter(lambda size: not 16 <= size <= 64))
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(HttpError) as caught:
        evidence.parse_request(json.dumps({"nonce": base64.b64encode(bytes(size)).decode()}).encode())
    assert caught.value.status == 400


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    for parse in (evidence.parse_request, evidence.parse_activation):
        with pytest.raises(HttpError) as caught:
            parse(data)
        assert caught.value.status == 400
