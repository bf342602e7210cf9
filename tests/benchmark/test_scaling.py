"""Several processes beside one: both are measured, and the ratio of their speeds is told."""

from __future__ import annotations

import re

import pytest
import yaml

from collm.benchmark import command
from collm.errors import TrainingError
from toy import REPOSITORY, toy_config


def test_a_run_that_fails_is_told_in_one_message(monkeypatch, capsys) -> None:
    def fail(*_) -> str:
        raise TrainingError("the run of 2 ended with status 1")

    monkeypatch.setattr("collm.benchmark.scaling.measure_scaling", fail)
    assert command.main(REPOSITORY / "tools" / "bench.py", REPOSITORY / "configs", ["scaling"]) == 1
    assert capsys.readouterr().err == "\nerror: the run of 2 ended with status 1\n"


@pytest.mark.slow
def test_two_processes_are_compared_with_one(tmp_path, tiny_folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests"), prepend=":")
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy_config(tiny_folder)))
    size = ["--processes=2", "--tasks=1", "--rounds=2", "--warmup=1"]
    args = ["scaling", *size, "--config=toy.yaml", "--data.num_generations=2"]
    assert command.main(REPOSITORY / "tools" / "bench.py", REPOSITORY / "configs", args) == 0
    told = capsys.readouterr().out
    assert re.search(r"seconds per round +1 process +2 processes\n", told)
    assert re.search(r"\ngenerate +\d+\.\d{3} +\d+\.\d{3}\n", told)
    number = r"\d+\.\d\d"
    assert re.search(rf"joint samples per second: {number} times those of one process \[{number}, {number}\]\n", told)
