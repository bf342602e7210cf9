"""The table of engines, with as little work as it can have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collm.benchmark.command import main
from toy import REPOSITORY


def test_every_engine_has_a_row(tmp_path: Path) -> None:
    options = ["--models", "heads of 64", "--engines", "collm", "transformers", "--joint-samples", "2"]
    options += ["--prompt-tokens", "5", "--new-tokens", "3", "--iterations", "1", "--out", str(tmp_path)]
    assert main(REPOSITORY / "tools" / "bench.py", REPOSITORY / "configs", ["engines", *options]) == 0
    rows = json.loads((tmp_path / "engines.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["heads of 64, collm", "heads of 64, transformers"]
    for row in rows:
        assert row["value"] * row["seconds"] == pytest.approx(3600 * 2)
        assert row["sampled_tokens_per_second"] * row["generate_seconds"] == pytest.approx(2 * 2 * 3)
