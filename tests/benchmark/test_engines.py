"""The table of engines, with as little work as it can have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collm.benchmark.command import main
from toy import REPOSITORY


def test_every_engine_has_a_row(tmp_path: Path) -> None:
    options = ["--models", "heads of 64", "--engines", "collm", "transformers", "--served", "--joint-samples", "2"]
    options += ["--prompt-tokens", "5", "--new-tokens", "3", "--iterations", "1", "--out", str(tmp_path)]
    assert main(REPOSITORY / "tools" / "bench.py", REPOSITORY / "configs", ["engines", *options]) == 0
    rows = json.loads((tmp_path / "engines.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["heads of 64, collm", "heads of 64, transformers"]
    for row in rows:
        assert row["value"] * row["seconds"] == pytest.approx(3600 * 2)
        assert row["sampled_tokens_per_second"] * row["generate_seconds"] == pytest.approx(2 * 2 * 3)


@pytest.mark.slow
def test_servers_have_a_row_with_and_without_overlap(tmp_path: Path) -> None:
    options = ["--models", "heads of 64", "--engines", "collm", "--served", "collm", "--servers", "2"]
    options += ["--joint-samples", "2", "--prompt-tokens", "5", "--new-tokens", "3", "--iterations", "1"]
    options += ["--out", str(tmp_path), "--each", "300"]
    assert main(REPOSITORY / "tools" / "bench.py", REPOSITORY / "configs", ["engines", *options]) == 0
    _, synchronous, overlapped = json.loads((tmp_path / "engines.json").read_text())["rows"]
    assert synchronous["name"] == "heads of 64, collm, 2 servers of each agent, synchronous"
    assert overlapped["name"] == "heads of 64, collm, 2 servers of each agent, overlapped"
    assert synchronous["sampled_tokens_per_second"] * synchronous["generate_seconds"] == pytest.approx(2 * 2 * 3)
    assert "sampled_tokens_per_second" not in overlapped
    for row in (synchronous, overlapped):
        assert row["value"] * row["seconds"] == pytest.approx(3600 * 2)
        assert row["tokens_per_second_of_iterations"] * row["seconds"] == pytest.approx(2 * 2 * 3)
