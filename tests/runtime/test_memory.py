"""Free memory goes back to the system where it is much."""

from __future__ import annotations

import pytest
import torch

from collm.runtime import memory

pytestmark = pytest.mark.skipif(memory._trim is None, reason="only glibc keeps what is free")


def test_what_lies_between_blocks_in_use_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._trim(0)  # what other tests have left
    before = memory._resident()
    monkeypatch.setattr(memory, "_least", before)
    monkeypatch.setattr(memory, "_WORTH_IT", 100_000_000)
    blocks = [torch.ones(25_000) for _ in range(2000)]  # 200 MB in blocks of the heap
    in_use = blocks[::20]
    assert memory._resident() > before + 150_000_000
    del blocks
    assert memory._resident() > before + 150_000_000
    memory.give_back()
    assert memory._resident() < before + 50_000_000
    assert all(block.sum() == 25_000 for block in in_use)


def test_what_is_free_stays_until_then() -> None:
    memory.keep()
    memory._trim(0)
    before = memory._resident()
    blocks = [torch.ones(5_000_000) for _ in range(10)]  # of 20 MB each
    del blocks
    assert memory._resident() > before + 150_000_000
    memory._trim(0)
    assert memory._resident() < before + 50_000_000


def test_it_is_given_back_when_it_has_grown_by_much_since(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, held = [], [0]
    monkeypatch.setattr(memory, "_trim", calls.append)
    monkeypatch.setattr(memory, "_least", 0)
    monkeypatch.setattr(memory, "_resident", lambda: held[0])
    much, given_back = memory._WORTH_IT, []
    for amount in (much - 1, much, much + 5, 2 * much - 1, 2 * much):
        held[0], before = amount, len(calls)
        memory.give_back()
        given_back.append(len(calls) > before)
    assert given_back == [False, True, False, False, True]
