"""Measured rounds, processes in turn, and the table; peers are played by a script of a few lines."""

from __future__ import annotations

import io
import json
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from collm.benchmark import command, suite
from collm.benchmark.cells import Cell, Work, cells, chosen
from collm.benchmark.rounds import overhead_share, summarize
from collm.benchmark.sides import Side, alternate, ratio
from collm.benchmark.suite import Suite, row, table_of
from collm.benchmark.tiny_model import build_benchmark_model
from collm.environments.workload import Workload
from collm.errors import TrainingError
from collm.models.loading import load_config, load_tokenizer
from collm.runtime.profiler import meter
from toy import REPOSITORY, toy_config

CONFIGS = REPOSITORY / "configs"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "model"
    build_benchmark_model(folder)
    return folder


def test_the_tiny_model(model: Path) -> None:
    config = load_config(str(model))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (128, 4, 4)
    assert config.vocab_size == 512
    assert config.tie_word_embeddings
    tokenizer = load_tokenizer(str(model))
    everything = list(range(2, 512))  # but the unknown word and the end
    assert tokenizer(tokenizer.decode(everything)).input_ids == everything


def one_round(seconds: float, other: float, floor: float) -> dict:
    phases = {"generate": seconds - other - 0.5, "environment": 0.5, "other": other}
    return {
        "seconds": seconds,
        "update_seconds": 1.0,
        "phases": phases,
        "joint_samples": 10,
        "sampled_tokens": 100,
        "padding_share": {"rollout": 0.1, "update": 0.2},
        "floor": {"seconds": floor, "phases": {"generate": floor}},
    }


def test_summary_of_hand_worked_rounds() -> None:
    rounds = [one_round(4.0, 0.5, 2.0), one_round(2.0, 0.5, 4.0), one_round(10.0, 1.0, 8.0)]
    summary = summarize(rounds)
    assert summary["num_rounds"] == 3
    assert summary["seconds"] == 4.0
    assert summary["seconds_range"] == [2.0, 10.0]
    assert summary["phases"] == {"generate": 3.0, "environment": 0.5, "other": 0.5}
    assert summary["joint_samples_per_hour"] == 9000
    assert summary["tokens_per_second"] == 25
    assert summary["generated_tokens_per_second"] == pytest.approx(100 / 3)
    assert [overhead_share(one) for one in rounds] == pytest.approx([0.25, 0.5, 0.15])
    assert summary["overhead_share"] == 0.25
    # medians 4 and 4; round by round 2, 0.5 and 1.25
    assert summary["floor"]["ratio"] == 1.0
    assert summary["floor"]["ratio_range"] == [0.5, 2.0]


def test_ratio_of_medians() -> None:
    assert ratio([6.0, 9.0, 3.0], [2.0, 1.0, 3.0]) == {"ratio": 3.0, "range": [1.0, 9.0], "num_rounds": 3}


SCRIPT = """
import json, sys
for number, line in enumerate(sys.stdin):
    assert line == "go\\n"
    open("order.txt", "a").write(sys.argv[1])
    print("noise")
    if sys.argv[1] == "x" and number == 2:
        sys.exit("out of memory")
    print("@round " + json.dumps({"seconds": number}), flush=True)
"""


def test_processes_are_measured_alternately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sides = {name: Side(name, [sys.executable, "-c", SCRIPT, name]) for name in "ab"}
    rounds = alternate(sides, num_rounds=2, warmup=1)
    assert (tmp_path / "order.txt").read_text() == "ababab"
    assert rounds == {name: [{"seconds": 1}, {"seconds": 2}] for name in "ab"}
    assert all(side.process.poll() is not None for side in sides.values())


def test_a_measured_process_that_ends_reports_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sides = {name: Side(name, [sys.executable, "-c", SCRIPT, name]) for name in "ax"}
    with pytest.raises(TrainingError, match="x ended with status 1: out of memory"):
        alternate(sides, num_rounds=2, warmup=1)
    assert sides["a"].process.poll() is not None


def test_any_configuration_is_compared_with_the_floor(tmp_path: Path, tiny_folder: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy_config(tiny_folder)))
    args = ["run", "--rounds=2", "--warmup=1", "--out=result.json", "--config=toy.yaml", "--data.num_generations=2"]
    assert command.main(REPOSITORY / "tools" / "bench.py", CONFIGS, args) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result.keys() == {"num_threads", "clock", "device", "warmup", "memory", "rounds", "summary"}
    assert (result["num_threads"], result["device"], result["warmup"]) == (1, "cpu", 1)
    assert len(result["rounds"]) == 3
    for one in result["rounds"]:
        assert one["joint_samples"] == 2 * 2 * 2  # tasks, generations, turns
        assert 0 < one["sampled_tokens"] <= 8 * 2 * 4  # of two agents, of 4 tokens at most
        assert one["seconds"] == pytest.approx(sum(one["phases"].values()))
        assert one["floor"]["seconds"] == pytest.approx(sum(one["floor"]["phases"].values()))
        assert all(0 <= share < 1 for share in one["padding_share"].values())
    assert result["summary"]["num_rounds"] == 2
    shown = capsys.readouterr().out
    for words in (
        "ratio to the floor",
        "joint samples per hour",
        "update/critic",
        "medians of 2 rounds after 1 on cpu",
    ):
        assert words in shown


def test_cells_have_unique_names_and_divisible_workloads() -> None:
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names)
    for cell in cells():
        assert cell.against in ("floor", "overhead", "work", "memory") or cell.of_peer
        assert (cell.other is not None) == (cell.against in ("work", "memory"))
        for work in filter(None, (cell.work, cell.other)):
            assert work.samples % work.generations == 0
    assert {cell.name.split("/")[0] for cell in cells()} == {"floor", "growth", "overhead", "memory", "comlrl", "trl"}
    assert [cell.name for cell in chosen(cells(), ["growth/it"])] == [
        "growth/iteration, 2 to 4 agents",
        "growth/iteration, 4 to 8 agents",
    ]
    assert chosen(cells(), []) == cells()


PEER = """
import json, sys
work = json.loads(sys.stdin.readline())
for line in sys.stdin:
    print("@round " + json.dumps({"seconds": 1e6, "work": work}), flush=True)
"""


@pytest.fixture
def known(tmp_path: Path) -> Namespace:
    return Namespace(out=tmp_path / "out", rounds=2, warmup=1, clock="wall", only=[], comlrl=None, trl=sys.executable)


def test_a_peer_gets_the_prompts_of_the_rollouts(tmp_path: Path, model: Path, known: Namespace, monkeypatch) -> None:
    (tmp_path / "peer.py").write_text(PEER)
    monkeypatch.setattr(suite, "__file__", str(tmp_path / "suite.py"))
    monkeypatch.setattr(suite, "PEERS", {"trl": "peer.py"})
    measuring = Suite(REPOSITORY / "tools" / "bench.py", CONFIGS, known)
    monkeypatch.setattr(measuring, "model", lambda work: str(model))
    work = Work(algorithm="magrpo", turns=2, samples=4, generations=2)
    side = measuring.peer(Cell("trl/x", work, "trl:grpo", 1.0))
    said = side.round()["work"]
    side.close()
    assert (said["algorithm"], said["agents"], said["turns"], said["generations"]) == ("grpo", 2, 2, 2)
    assert [len(one) for one in said["prompts"]] == [2, 2, 2]
    tokenizer = load_tokenizer(str(model))
    lengths = {len(tokenizer(text).input_ids) for one in said["prompts"] for texts in one for text in texts}
    assert lengths == {64}
    assert len(tokenizer(said["bridge"]).input_ids) == 2
    environment = Workload(num_agents=2, horizon=2, prompt_words=64)
    shown = [list(environment.reset(task, None)[1].values()) for task in environment.tasks("train")]
    assert all([text.strip() for text in texts] in shown for one in said["prompts"] for texts in one)


def test_the_table_keeps_its_measurements(known: Namespace, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    numbers = {"ratio": 0.5, "range": [0.4, 0.6], "num_rounds": 2}
    measured = []
    monkeypatch.setattr(Suite, "result", lambda self, cell: measured.append(cell.name) or numbers)
    monkeypatch.setattr(suite, "pin", lambda: None)  # would stay for the tests that follow
    known.only = ["growth/iteration, 2", "comlrl"]  # of which there is no interpreter
    for _ in range(2):
        Suite(Path("bench.py"), CONFIGS, known).measure()
    assert measured == ["growth/iteration, 2 to 4 agents"]
    table = (known.out / "table.md").read_text()
    assert "| growth | iteration, 2 to 4 agents | 0.50 [0.40, 0.60] | 2 | ≤ 2.1 | yes |" in table
    assert len(table.splitlines()) == 3
    assert table in capsys.readouterr().out


def test_a_ratio_that_cannot_be_measured_does_not_stop_the_others(known: Namespace, monkeypatch, capsys) -> None:
    def result(self: Suite, cell: Cell) -> dict:
        if cell.name == "growth/update, 2 to 4 turns":
            raise TrainingError("out of memory")
        return {"ratio": 0.5, "range": [0.4, 0.6], "num_rounds": 2}

    monkeypatch.setattr(Suite, "result", result)
    monkeypatch.setattr(suite, "pin", lambda: None)
    known.only = ["growth/update"]
    assert not Suite(Path("bench.py"), CONFIGS, known).measure()
    assert "error: growth/update, 2 to 4 turns: out of memory" in capsys.readouterr().err
    assert "4 to 8 turns" in (known.out / "table.md").read_text()


def test_arguments_of_workloads_are_accepted_by_the_command_line(tmp_path, model: Path, monkeypatch, capsys) -> None:
    """One round in turn with others: a line comes in before it and another one with the numbers goes out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    work = Work(algorithm="magrpo", agents=3, turns=2, samples=2, generations=2, tree=True)
    options = ["--clock=cpu", "--rounds=1", "--warmup=0", "--no-floor", "--in-turn", "--out=here.json"]
    args = ["run", *options, *work.arguments(CONFIGS, str(model)), "--trainer.accelerator=cpu"]
    args += ["--model.policy.min_new_tokens=4", "--model.policy.max_new_tokens=4"]
    assert command.main(Path("bench.py"), CONFIGS, args) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("@round ")]
    one = json.loads(line.removeprefix("@round "))
    assert one["joint_samples"] == 2 + 4
    assert one["sampled_tokens"] == 3 * 6 * 4
    assert one["prompt_tokens"] == 3 * (2 * 64 + 4 * (64 + 4 + 2))
    assert "floor" not in one
    assert json.loads(Path("here.json").read_text())["clock"] == "process_time"
    assert meter.clock is time.perf_counter


def test_overhead_comes_from_the_comparison_with_the_floor(known: Namespace) -> None:
    known.out.mkdir()
    measuring = Suite(Path("bench.py"), CONFIGS, known)
    overhead = next(cell for cell in cells() if cell.name == "overhead/tiny, 1 turn")
    twin = next(cell for cell in cells() if cell.name == "floor/tiny, 1 turn, separate")
    rounds = [one_round(100.0, 0.0, 1.0), one_round(4.0, 0.5, 2.0), one_round(2.0, 0.5, 4.0), one_round(10.0, 1.0, 8.0)]
    measuring.path(twin).write_text(json.dumps({"runs": [{"warmup": 1, "rounds": rounds}]}))
    result = measuring.overhead(overhead)
    assert (result["ratio"], result["num_rounds"]) == (0.25, 3)
    assert result["range"] == pytest.approx([0.15, 0.5])


def test_memory_is_measured_in_separate_processes(known: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = [cell for cell in cells() if cell.against == "memory"]
    measuring = Suite(Path("bench.py"), CONFIGS, known)
    monkeypatch.setattr(measuring, "model", lambda work: work.model)
    monkeypatch.setattr(measuring, "run", lambda work, floor: {"memory": {"peak_rss_gb": 2.0 + work.agents / 8}})
    result = measuring.result(cell)
    assert result["ratio"] == 3.0 / 2.125
    assert "--model.tokens_per_micro_batch=512" in result["command"]


def test_a_row_says_whether_the_target_is_reached() -> None:
    cell = Cell("floor/tiny", Work(), "floor", 0.8)
    result = {"ratio": 0.75, "range": [0.5, 0.9], "num_rounds": 5}
    assert row(cell, result) == "| floor | tiny | 0.75 [0.50, 0.90] | 5 | ≤ 0.8 | yes |"
    peer = replace(cell, against="trl:grpo", target=1.3)
    assert row(peer, result) == "| floor | tiny | 0.75 [0.50, 0.90] | 5 | ≥ 1.3 | no |"
    assert len(table_of({cell: result}).splitlines()) == 3


@pytest.mark.parametrize("args", [["run", "--rounds=0"], ["table", "--nonsense"], ["table", "--warmup=-1"]])
def test_mistakes_are_named(args: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.main(Path("bench.py"), CONFIGS, args)
    assert "error: " in capsys.readouterr().err
