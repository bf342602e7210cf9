"""Free memory goes back to the system, and not too often."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from collm import memory


def resident() -> float:
    """Memory of this process, in units of 10^6 bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(memory._trim is None, reason="only glibc keeps what is free")
def test_what_lies_between_blocks_in_use_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_last", -memory._PAUSE)
    memory._trim(0)  # what other tests have left
    before = resident()
    blocks = [torch.ones(25_000) for _ in range(2000)]  # 200 MB in blocks of the heap
    in_use = blocks[::20]
    assert resident() > before + 150
    del blocks
    assert resident() > before + 150
    memory.give_back()
    assert resident() < before + 50
    assert all(block.sum() == 25_000 for block in in_use)


def test_it_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, now = [], [100.0]
    monkeypatch.setattr(memory, "_trim", calls.append)
    monkeypatch.setattr(memory, "_last", -memory._PAUSE)
    monkeypatch.setattr(memory.time, "monotonic", lambda: now[0])
    for moment in (100.0, 101.0, 100.0 + memory._PAUSE, 101.0 + memory._PAUSE):
        now[0] = moment
        memory.give_back()
    assert len(calls) == 2
