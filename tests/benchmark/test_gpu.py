"""The measurements of a card, on a processor and a model that is small."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest
import torch

from collm.benchmark import command
from collm.benchmark.gpu import Bench
from collm.benchmark.options import bench_parser
from collm.benchmark.timed_table import Table
from toy import REPOSITORY

SMALL = (
    "--shape tiny --device cpu --size 64 --rows 2 --prompt-tokens 16 --new-tokens 8 --joint-samples 4 --iterations 1"
)


def test_the_table_of_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["gpu", *SMALL.split(), "--dtype=float32", f"--out={tmp_path}"]
    assert command.main(REPOSITORY / "tools" / "bench.py", REPOSITORY / "configs", arguments) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    iterations = [f"iteration, {name}" for name in ("separate, collm", "separate, transformers", "lora, collm")]
    updates = [f"{name}: update and values" for name in iterations]
    decoding = ["decode, collm, 2 rows", "decode, transformers, 2 rows"]
    assert {*iterations, *updates, *decoding} <= rows.keys()
    for name in [*iterations, *updates, *decoding]:
        assert rows[name]["value"] > 0, rows[name]
    printed = capsys.readouterr().out
    assert (tmp_path / "gpu.md").read_text() in printed
    for name in iterations:
        parts = [rows[name][f"{part}_seconds"] for part in ("generate", "update", "values", "other")]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(rows[name]["seconds"])
    # Two episodes. An agent's row: 16 tokens, 8 of its own, `and then`, 8 of its own. The critic's: 4 of the turn, 17
    # of each agent and 1; 9 of each agent; 9 of turn and reward, 3 of each agent and 1. 4 x 34 + 2 x 73 tokens.
    assert [rows[name]["tokens"] for name in updates] == [282] * 3
    # Weights of two layers, of the head at 64 tokens, and attention over half of all pairs, 6 operations each
    layers = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 2 * 16 + 3 * 64 * 128 + 2 * 64)
    whole = 6 * (layers * 282 + 512 * 64 * 64) + 6 * 2 * 64 * (4 * 34**2 + 2 * 73**2)
    frozen = 4 * (layers * 282 + 512 * 64 * 64) + 6 * 2 * 64 * (4 * 34**2 + 2 * 73**2)
    assert [1e12 * rows[name]["teraflop"] for name in updates] == pytest.approx([whole, whole, frozen])


def test_the_limit_of_decoding_worked_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = bench_parser().parse_args(["gpu", *SMALL.split(), f"--out={tmp_path}"])
    table = Table(known)
    bench = Bench(known, table)
    bench.write_model(str(tmp_path / "model"))
    bench.bandwidth = 1e6
    took = iter([0.5, 4.0])  # reading prompts, and reading them and writing
    monkeypatch.setattr(bench, "seconds", lambda work, times=1: next(took))
    bench.decode("collm")
    (row,) = table.rows
    assert row["value"] == pytest.approx(2 / 0.5)  # 7 steps after the first token in 3.5 seconds
    # Two bytes for each weight: 2 layers of 37,024, a norm, the head; and for 2 rows of 20 tokens keys and values
    read = 2 * (2 * 37_024 + 64 + 512 * 64) + 2 * 20 * (2 * 2 * 2 * 16 * 2)
    assert row["limit_tokens_per_second"] == pytest.approx(2 * 1e6 / read)
    assert row["share_of_bandwidth_limit"] == pytest.approx(read / 1e6 / 0.5)


def test_timeouts_failures_and_out_of_memory_become_rows(tmp_path: Path) -> None:
    table = Table(argparse.Namespace(out=tmp_path, each=1.2, limit=60, device="cpu"))

    def fail() -> None:
        raise RuntimeError("the card is on fire")

    def full() -> None:
        raise torch.OutOfMemoryError("2 GB wanted")

    assert not table.measure("slow", lambda: time.sleep(20))
    assert not table.failed
    assert not table.measure("full", full)
    assert not table.measure("broken", fail)
    assert table.failed
    assert table.measure("fine", lambda: table.add("fine", 12345.6, "tokens/s", seconds=0.12345))
    table.known.limit = 0
    assert not table.measure("late", fail)
    written = [(row["name"], row["value"]) for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]]
    assert written == [
        ("slow", "stopped after 1 s"),
        ("full", "out of memory"),
        ("broken", "failed"),
        ("fine", 12345.6),
        ("late", "no time left"),
    ]
    assert "| fine | 12,346 tokens/s | seconds 0.123 |\n" in (tmp_path / "gpu.md").read_text()
    assert "the card is on fire" in (tmp_path / "gpu.md").read_text()
