"""The measurement of response times prints a line for every way to ask."""

from __future__ import annotations

import pytest

from collm.benchmark.delay import measure


def test_every_way_to_ask_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    measure(seconds=0.05, free=4, turns=2)
    lines = capsys.readouterr().out.splitlines()
    spent = {line.split()[0]: float(line.split()[1]) for line in lines[1:4]}
    assert all(spent[name] >= rounds for name, rounds in (("Parallel", 2), ("Pipeline", 4), ("Discussion", 4)))
    assert [line.split()[1] for line in lines[5:]] == ["0.3", "1.0"]
