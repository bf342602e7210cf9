"""Processes whose episodes all fail take part in updates with nothing to add, and a rollout of failures is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pair import Run, fit_in_pair
from test_devices import STRATEGIES, config, curves_of, result

CASES = {"cc": ("collm_cc.CoLLMCC", {"critic": {"normalize": True}}), "magrpo": ("magrpo.MAGRPO", {"kl_weight": 0.1})}


def failing(tiny_folder: str, case: str, fail_every: int) -> dict[str, Any]:
    """Two tasks in every rollout, one for each process; the first of every `fail_every` fails in its second turn."""
    algorithm, given = CASES[case]
    made = config(tiny_folder, algorithm, "separate", given)
    toy = {"horizon": 2, "num_tasks": 2, "fail_turn": 1 if fail_every > 1 else 0, "fail_every": fail_every}
    made["data"] |= {"environment": {"class_path": "toy.Toy", "init_args": toy}, "tasks_per_rollout": 2}
    made["trainer"]["max_epochs"] = 2
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> Path:
    root = tmp_path_factory.mktemp("failing")
    every = {(case, how): failing(tiny_folder, case, how) for case in CASES for how in (1, 2)}
    for (case, how), made in every.items():
        Run(str(root / f"{case}_{how}_one"), made).fit()
    both = [
        Run(str(root / f"{case}_{how}_{name}"), made, strategy)
        for (case, how), made in every.items()
        for name, strategy in STRATEGIES.items()
    ]
    fit_in_pair(root, both)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("how", [1, 2], ids=["every rank fails", "one rank fails"])
@pytest.mark.parametrize("case", CASES)
def test_failing_ranks_change_nothing(runs: Path, case: str, how: int, strategy: str) -> None:
    folders = [runs / f"{case}_{how}_{name}" for name in ("one", strategy)]
    curves, both_curves = (curves_of(folder) for folder in folders)
    if how == 2:  # without a step there is nothing to save
        weights, both = (result(folder)[0] for folder in folders)
        for name, weight in weights.items():
            torch.testing.assert_close(both[name], weight, msg=name)
    assert curves.keys() == both_curves.keys()
    for name, values in curves.items():
        assert both_curves[name] == pytest.approx(values, rel=1e-4, abs=1e-5, nan_ok=True), name
    # K = 2: two of four episodes fail, or all, and every one of them twice
    assert curves["rollout/failed"] == [0.5 if how == 2 else 1.0] * 2
    assert curves["rollout/failed/environment"] == [4.0 if how == 2 else 8.0] * 2
    assert ("loss/policy/a1" in curves) == (how == 2)
