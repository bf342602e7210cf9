"""Critics that read the state know in two processes what they know in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pair import Run, fit_in_pair
from test_devices import LOGS, STRATEGIES, config, curves_of

CRITICS: dict[str, dict[str, Any]] = {
    "ridge": {"class_path": "collm.critics.features.FeaturesCritic"},
    "network": {
        "class_path": "collm.critics.feature_network.FeatureNetworkCritic",
        "init_args": {"hidden_sizes": [8], "steps": 5, "parts": 1},  # one part: no rows are drawn
    },
}


def described(tiny_folder: str, critic: dict[str, Any]) -> dict[str, Any]:
    made = config(tiny_folder, "collm_cc.CoLLMCC", "separate", {"gae_lambda": 0.95, "center_groups": True})
    made["model"]["init_args"] |= {"critic": critic, "num_generations": 2}
    made["data"]["environment"]["class_path"] = "described.DescribedToy"
    made["data"]["replace_equal_groups"] = 1
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> Path:
    root = tmp_path_factory.mktemp("state")
    for name, critic in CRITICS.items():
        Run(str(root / f"{name}_one"), described(tiny_folder, critic)).fit()
    fit_in_pair(
        root,
        [
            Run(str(root / f"{name}_{strategy}"), described(tiny_folder, critic), chosen)
            for name, critic in CRITICS.items()
            for strategy, chosen in STRATEGIES.items()
        ],
    )
    return root


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CRITICS)
def test_two_processes_know_what_one_does(root: Path, name: str, strategy: str) -> None:
    one, both = (
        torch.load(root / f"{name}_{how}" / LOGS / "checkpoints" / "last.ckpt", weights_only=True)
        for how in ("one", strategy)
    )
    for key, weight in one["state_dict"].items():
        torch.testing.assert_close(both["state_dict"][key], weight, msg=key)
    for key in ("moments", "turn_weights") if name == "ridge" else ("mean", "scale"):
        found, expected = (checkpoint["collm"]["critics"]["critic"][key] for checkpoint in (both, one))
        assert expected.abs().sum() > 0
        torch.testing.assert_close(found, expected)
    curves, both_curves = (curves_of(root / f"{name}_{how}") for how in ("one", strategy))
    for key, values in curves.items():
        assert both_curves[key] == pytest.approx(values, rel=1e-4, abs=1e-5, nan_ok=True), key
    assert len(set(curves["rollout/return"])) > 1
