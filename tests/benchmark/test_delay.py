"""The measurement of response times prints a line for every way to ask."""

from __future__ import annotations

import runpy

import pytest

from collm.benchmark import delay


def test_every_way_to_ask_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    delay.measure(seconds=0.05, free=4, turns=2)
    lines = capsys.readouterr().out.splitlines()
    spent = {line.split()[0]: float(line.split()[1]) for line in lines[1:4]}
    assert all(spent[name] >= rounds for name, rounds in (("Parallel", 2), ("Pipeline", 4), ("Discussion", 4)))
    assert [line.split()[1] for line in lines[5:]] == ["0.3", "1.0"]


def test_a_mistake_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collm.runtime.command.run_command", lambda function: 2)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(delay.__file__, run_name="__main__")
    assert ended.value.code == 2
