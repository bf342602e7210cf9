"""Every algorithm makes two updates on the building game with the embedded language model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from curves import scalars
from toy import REPOSITORY

# all but `oracle`, which needs an environment that knows its values
ALGORITHMS = sorted(path for path in (REPOSITORY / "configs" / "algorithms").glob("*.yaml") if path.stem != "oracle")
GAME = {
    "model": {"init_args": {"policy": {"path": "tiny", "max_new_tokens": 24}}},
    "data": {
        "environment": {
            "class_path": "collm.environments.building.str_build.StrBuild",
            "init_args": {
                "words": ["I", "L"],
                "eval_words": ["T"],
                "horizon": 2,
                "persistent": True,
                "prompt": "compact",
            },
        },
        "num_generations": 2,
    },
}


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda path: path.stem)
def test_every_algorithm_trains_on_the_building_game(
    fit: Callable[..., int], run_folder: Path, tmp_path: Path, path: Path
):
    (tmp_path / "game.yaml").write_text(yaml.safe_dump(GAME))
    assert fit("--config", str(path), "--config", str(tmp_path / "game.yaml")) == 0
    curves = scalars(run_folder)
    # two rollouts of 2 tasks x 2 episodes x 2 turns, both updates made; C3 plays 2 + 2 * 3 joint actions for each task
    played = 16 if path.stem == "c3" else 8
    assert curves["rollout/joint_samples"] == [played, 2 * played]
    losses = {name: values for name, values in curves.items() if name.startswith("loss/")}
    assert losses
    assert all(len(values) == 2 and all(map(math.isfinite, values)) for values in losses.values())
    # the embedded model has learned to write commands that count
    assert max(curves["rollout/coverage"]) > 0.1
    assert max(curves["rollout/rejected_rate"]) < 0.5
