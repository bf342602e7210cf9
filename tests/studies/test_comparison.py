from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from collm.callbacks.resources import LogResources, peak_memory
from collm.errors import ConfigurationError
from collm.metrics import stratified_interval
from collm.studies import comparison, plots
from collm.studies.comparison import Entry, Job, compare, find, tabulate, training
from collm.studies.measure import MeasureEpisodes
from collm.studies.runs import Curve, band, read_run
from collm.studies.tables import Row, as_cell, as_text, write_csv
from collm.trajectory import Task, Trajectory, collate

BASE = Path(__file__).parents[2] / "configs" / "base.yaml"


# Intervals


def test_one_value_has_no_width() -> None:
    assert stratified_interval([torch.tensor([3.0])]) == (3.0, 3.0, 3.0)
    assert all(map(math.isnan, stratified_interval([torch.tensor([])])))


def test_two_constant_runs_are_resampled_as_runs() -> None:
    """Means of two draws from runs at 0 and 1 are 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4: both ends occur."""
    assert stratified_interval([torch.zeros(50), torch.ones(50)]) == (0.5, 0.0, 1.0)


def test_runs_count_alike_whatever_their_episodes() -> None:
    mean, *_ = stratified_interval([torch.tensor([0.0]), torch.tensor([2.0, 4.0, 6.0]), torch.tensor([])])
    assert mean == pytest.approx((0.0 + 4.0) / 2)


def test_one_run_is_the_plain_bootstrap() -> None:
    """Of 100 zeros and 100 ones the mean is normal with deviation sqrt(1 / 800), nearly."""
    mean, low, high = stratified_interval([torch.tensor([0.0, 1.0]).repeat(100)])
    assert mean == 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * 800**-0.5, rel=0.08)


def test_runs_and_episodes_both_vary() -> None:
    """Variance of the resampled mean: (between runs + within runs / episodes) / runs, with two runs at 0 and 1."""
    runs = [torch.tensor([shift - 1.0, shift + 1.0]).repeat(8) for shift in np.linspace(0.0, 3.0, 12)]
    _, low, high = stratified_interval(runs)
    deviation = math.sqrt((np.var(np.linspace(0.0, 3.0, 12)) + 1 / 16) / 12)
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.08)


# Logs


def write_run(folder: Path, returns: list[float], slow: float = 1.0) -> Path:
    """A run of 10 joint samples a rollout, evaluated first and after every second rollout."""
    with SummaryWriter(str(folder)) as writer:
        for index, value in enumerate(returns):
            writer.add_scalar("eval/return", value, 20 * index)
        for rollout in range(1, 2 * len(returns) - 1):
            step = 10 * rollout
            writer.add_scalar("rollout/joint_samples", step, step)
            writer.add_scalar("time/rollout", 2.0 * slow, step)
            writer.add_scalar("time/update", 1.0 * slow, step)
            writer.add_scalar("memory/peak_rss_gb", 0.5 + rollout, step)
            if rollout > 1:  # a critic that warmed up
                writer.add_scalar("loss/policy/a1", 0.1, step)
    config = {"model": {"init_args": {"num_epochs": 3, "num_minibatches": 2}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_curves_and_overhead_of_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", [0.0, 0.5, 1.5]))
    curve = run.curve("eval/return")
    assert curve.samples.tolist() == [0, 20, 40]
    assert curve.seconds.tolist() == [0.0, 6.0, 12.0]
    assert curve.values.tolist() == [0.0, 0.5, 1.5]
    assert run.curve("eval/nothing") is None
    assert run.overhead() == {
        "joint_samples": 40.0,
        "rollouts": 4.0,
        "policy_updates": 18.0,
        "seconds": 12.0,
        "peak_rss_gb": 4.5,
    }


def test_steps_repeated_by_a_resumed_run_count_once(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [0.0, 0.5])
    with SummaryWriter(str(tmp_path / "run"), filename_suffix=".resumed") as writer:
        writer.add_scalar("time/rollout", 4.0, 20)
        writer.add_scalar("eval/return", 0.7, 20)
    run = read_run(tmp_path / "run")
    assert run.curve("eval/return").values.tolist() == pytest.approx([0.0, 0.7])
    assert run.overhead()["seconds"] == 3.0 + 4.0 + 1.0


def test_band_over_runs() -> None:
    """Run one is a line from 0 to 4 over 40 samples, run two is constant at 2 up to 30 samples."""
    line = Curve(np.array([0, 20, 40]), np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0]))
    level = Curve(np.array([0, 30]), np.array([0.0, 6.0]), np.array([2.0, 2.0]))
    course = band([line, level], "samples")
    assert course.axis.tolist() == [0, 20, 30]
    assert course.mean.tolist() == pytest.approx([1.0, 2.0, 2.5])
    assert course.low.tolist() == pytest.approx([0.0, 2.0, 2.0])
    assert course.high.tolist() == pytest.approx([2.0, 2.0, 3.0])
    timed = band([line, level], "seconds")
    assert (timed.axis[0], timed.axis[-1]) == (0.0, 2.0)
    assert timed.mean[-1] == pytest.approx(3.0)


def test_training_of_labels(tmp_path: Path) -> None:
    jobs = []
    for seed, slow in enumerate((1.0, 3.0)):
        folder = write_run(tmp_path / f"seed_{seed}", [0.0, 1.0], slow)
        jobs.append(Job("CC", (str(folder / "config.yaml"),), "last.ckpt", {}))
    jobs.append(Job("untrained", (str(tmp_path / "seed_0" / "config.yaml"),), None, {}))
    rows, curves = training(jobs)
    assert [(row.label, row.num_runs) for row in rows] == [("CC", 2)]
    assert rows[0].cells["seconds"] == (12.0, 6.0, 18.0)
    assert len(curves["CC"]) == 2
    plots.draw_curves(tmp_path / "curves.png", curves, "eval/return")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_no_logs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no TensorBoard logs"):
        read_run(tmp_path)


def test_peak_memory_is_logged() -> None:
    logged = {}
    module = SimpleNamespace(device=torch.device("cpu"), network_devices={}, log=logged.__setitem__)
    LogResources().on_train_batch_end(None, module, None, collate([]), 0)
    assert {name for name in logged if name.startswith("memory/")} == {"memory/peak_rss_gb"}
    assert 0.05 < logged["memory/peak_rss_gb"] <= peak_memory(torch.device("cpu"))["peak_rss_gb"] < 1000


# Tables


def test_table_cells_by_hand() -> None:
    first = {"episodes": [{"return": 1.0, "iou": 0.5, "cost": 10.0}, {"return": 1.0, "iou": 0.5}], "seconds": [2.0]}
    second = {"episodes": [{"return": 3.0, "iou": 0.5, "cost": 20.0}], "seconds": [4.0, 4.0]}
    (row,) = tabulate({"CC": [first, second]})
    assert list(row.cells) == ["seconds", "cost", "return", "iou"]
    assert row.num_runs == 2
    assert row.cells == {
        "seconds": (3.0, 2.0, 4.0),
        "cost": (15.0, 10.0, 20.0),
        "return": (2.0, 1.0, 3.0),
        "iou": (0.5, 0.5, 0.5),
    }


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ((2.0, 1.0, 3.0), "2.00 [1.00, 3.00]"),
        ((0.5, 0.5, 0.5), "0.500"),
        ((-0.01234, -1.0, 100.0), "-0.0123 [-1.00, 100]"),
        ((15360.0, 15360.0, 15360.0), "15,360"),
        ((999.7, 999.4, 1000.4), "1,000 [999, 1,000]"),
    ],
)
def test_cell_as_text(cell: tuple[float, float, float], text: str) -> None:
    assert as_cell(cell) == text


def test_table_as_text_and_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Row("CC", 3, {"cost": (1.0, 1.0, 1.0), "return": (2.0, 1.0, 3.0)}),
        Row("Single", 1, {"return": (0.5, 0.5, 0.5)}),
    ]
    monkeypatch.setenv("COLUMNS", "80")
    assert as_text(rows).splitlines() == [
        "method      cost (tokens)  return",
        "CC (3)      1.00           2.00 [1.00, 3.00]",
        "Single (1)  -              0.500",
    ]
    monkeypatch.setenv("COLUMNS", "30")
    narrow = as_text(rows).split("\n\n")
    assert [block.splitlines()[0].split() for block in narrow] == [["method", "cost", "(tokens)"], ["method", "return"]]
    write_csv(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines == [
        ["method", "runs", "cost", "cost_low", "cost_high", "return", "return_low", "return_high"],
        ["CC", "3", "1.0", "1.0", "1.0", "2.0", "1.0", "3.0"],
        ["Single", "1", "", "", "", "0.5", "0.5", "0.5"],
    ]


# Entries


def test_a_pattern_finds_all_seeds_and_their_checkpoints(tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / f"seed_{seed}" / "checkpoints").mkdir(parents=True)
        (tmp_path / f"seed_{seed}" / "config.yaml").touch()
        (tmp_path / f"seed_{seed}" / "checkpoints" / "last.ckpt").touch()
    jobs = find(Entry("CC", str(tmp_path / "seed_*" / "config.yaml"), "last"))
    assert [Path(job.checkpoint).parent.parent.name for job in jobs] == ["seed_0", "seed_1"]
    with pytest.raises(ConfigurationError, match="no best checkpoint"):
        find(Entry("CC", str(tmp_path / "seed_0" / "config.yaml"), "best"))
    with pytest.raises(ConfigurationError, match="matches 2 files"):
        find(Entry("CC", [str(tmp_path / "seed_*" / "config.yaml"), str(tmp_path / "seed_0" / "config.yaml")]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"entries": []}, "nothing to compare"),
        ({"entries": [Entry("x", "nowhere.yaml")]}, "'nowhere.yaml'"),
        ({"entries": [Entry("x", str(BASE), "nowhere.ckpt")]}, "'nowhere.ckpt' does not exist"),
        ({"entries": [Entry("x", str(BASE))], "episodes_per_task": 0}, "episodes_per_task is 0"),
        ({"entries": [Entry("x", str(BASE))], "timed_episodes": -1}, "timed_episodes is -1"),
    ],
)
def test_bad_input_is_reported_before_any_evaluation(tmp_path: Path, arguments: dict, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        compare(**arguments, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_figures_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"collm\[plots\]"):
        compare([Entry("x", str(BASE))])


def test_other_tasks_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter(["one", "two"])
    monkeypatch.setattr(comparison, "evaluate", lambda *_: {"tasks": [next(found)], "episodes": [], "seconds": []})
    with pytest.raises(ConfigurationError, match="other tasks"):
        compare([Entry("x", str(BASE)), Entry("y", str(BASE))], out=str(tmp_path), figures=False)


def fake_record(*tasks: str, dropped: int = 0) -> dict:
    return {"tasks": tasks, "dropped": dropped, "episodes": [{"return": 1.0}], "seconds": []}


def test_dropped_episodes_are_reported_and_change_no_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of x drop 1 and 0 of 2 episodes of two tasks, the run of y drops 1: 0.5 and 1 of a run."""
    records = iter(
        [fake_record("t", "u", dropped=1), fake_record("u", "t", "t", "u"), fake_record("u", "t", dropped=1)]
    )
    monkeypatch.setattr(comparison, "evaluate", lambda *_: next(records))
    compare([Entry("x", str(BASE)), Entry("x", str(BASE)), Entry("y", str(BASE))], out=str(tmp_path), figures=False)
    document = json.loads((tmp_path / "table.json").read_text())
    assert [row["cells"]["dropped"][0] for row in document["table"]] == [0.5, 1.0]
    assert document["tasks"] == ["t", "u"]


def test_an_evaluation_counts_the_episodes_that_it_dropped(tmp_path: Path) -> None:
    kept, failed = (Trajectory(Task(name, {}), 0, 1, 1.0) for name in ("kept", "failed"))
    measure = MeasureEpisodes(str(tmp_path / "episodes.json"))
    for _ in range(2):  # what one evaluation has counted is not counted in the next
        measure.on_validation_batch_end(None, None, None, collate([kept], 0.0, [failed]))
        measure.on_validation_end(None, SimpleNamespace(joint_samples=0))
        record = json.loads((tmp_path / "episodes.json").read_text())
        assert (record["tasks"], record["dropped"], len(record["episodes"])) == (["kept", "failed"], 1, 1)


def test_labels_keep_apart_what_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither trained and untrained agents in one row, nor two rows with the same folders of transcripts."""
    monkeypatch.setattr(comparison, "evaluate", lambda *_: fake_record("t"))
    (tmp_path / "last.ckpt").touch()
    mixed = [Entry("x", str(BASE), str(tmp_path / "last.ckpt")), Entry("x", str(BASE))]
    for entries, named in (
        (mixed, "'x' names trained and untrained entries"),
        ([Entry("a b", str(BASE)), Entry("a-b", str(BASE))], "the labels a b, a-b must differ"),
    ):
        with pytest.raises(ConfigurationError, match=named):
            compare(entries, out=str(tmp_path / "out"), figures=False)
    assert not (tmp_path / "out").exists()


# All of it


@pytest.mark.slow
def test_runs_and_untrained_protocols_end_to_end(
    fit: Callable[..., int], tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--data.eval_episodes_per_task", "2") == 0
    config = str(run_folder / "config.yaml")
    samplers = {
        name: {"data": {"eval_sampler": {"class_path": f"collm.samplers.{path}"}}}
        for name, path in (("Pipeline", "pipeline.Pipeline"), ("Talk", "discussion.Discussion"))
    }
    entries = [
        Entry("CC", config, "last"),
        Entry("Parallel", config),
        Entry("Again", str(tmp_path / "toy.yaml")),
        Entry("Pipeline", config, None, samplers["Pipeline"]),
        Entry("Talk", config, None, samplers["Talk"]),
        Entry("Single", config, None, {"data": {"environment": {"init_args": {"num_agents": 1}}}}),
    ]
    compare(entries, "out", episodes_per_task=3, timed_episodes=2, default_config=str(BASE))
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= {"table.csv", "table.png", "curves.png", "overhead.csv"}
    document = json.loads((out / "table.json").read_text())
    rows = {row["label"]: row["cells"] for row in document["table"]}
    assert list(rows) == ["CC", "Parallel", "Again", "Pipeline", "Talk", "Single"]
    times = ["seconds", "turn_seconds", "idle_share", "tokens_per_second"]
    assert list(rows["CC"]) == [*times, "cost", "message_tokens", "return", "last"]
    assert rows["Pipeline"]["idle_share"][0] == pytest.approx(0.5)  # one of two agents always waits
    # four tokens a message at most; in a discussion each agent writes two of them a turn
    assert rows["Parallel"]["cost"][0] <= 4.0 < rows["Talk"]["cost"][0] <= 8.0
    assert rows["Talk"]["cost"][0] == pytest.approx(2 * rows["Talk"]["message_tokens"][0])
    # the same weights, tasks and seeds play the same episodes, by whichever way they are named
    same = [name for name in rows["Parallel"] if name not in times]
    assert [rows["Again"][name] for name in same] == [rows["Parallel"][name] for name in same]
    assert [row["label"] for row in document["overhead"]] == ["CC"]
    assert document["overhead"][0]["cells"]["joint_samples"][0] == 8.0
    assert document["overhead"][0]["cells"]["peak_rss_gb"][0] > 0.0
    episodes = json.loads((out / "evaluations" / "CC_0" / "episodes.json").read_text())
    assert (len(episodes["episodes"]), len(episodes["seconds"]), episodes["joint_samples"]) == (6, 2, 8)
    printed = capsys.readouterr().out
    assert "[4/6] Pipeline" in printed
    assert "cost (tokens)" in printed


def test_an_entry_that_cannot_be_evaluated_ends_the_comparison(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {
        "data": {
            "environment": {"init_args": {"num_agents": 1}},
            "eval_sampler": {"class_path": "collm.samplers.pipeline.Pipeline"},
        }
    }
    entries = [Entry("Alone", str(tmp_path / "toy.yaml"), None, overrides)]
    with pytest.raises(ConfigurationError, match="'Alone'.*could not be evaluated"):
        compare(entries, str(tmp_path / "out"), default_config=str(BASE))
    assert "Pipeline lets agents read each other" in capsys.readouterr().err
