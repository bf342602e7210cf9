"""What else critics may learn from: other targets and earlier rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from collm.algorithms.actor_critic import ActorCritic
from collm.algorithms.collm_cc import CoLLMCC
from collm.critics.language_model import LanguageModelCritic
from collm.errors import ConfigurationError
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.objectives import next_turn
from collm.studies.runs import read_run
from collm.trajectory import RolloutBatch

SPEC = {"agent_ids": ["a", "b"], "policy": PolicySpec("tiny"), "critic": LanguageModelCritic(ModelSpec("tiny"))}


def test_critic_lambda_sets_the_targets_only() -> None:
    """Rewards 1, 2 and values 5, 3: TD targets 1 + 3 and 2, Monte-Carlo ones 3 and 2."""
    batch = RolloutBatch([], torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]))
    values = torch.tensor([[5.0, 3.0]])
    errors = torch.tensor([[-1.0, -1.0]])  # of lambda 0
    for setting, expected in ((None, [[4.0, 2.0]]), (1.0, [[3.0, 2.0]]), (0.5, [[3.5, 2.0]])):
        module = CoLLMCC(gae_lambda=0.0, critic_lambda=setting, **SPEC)
        assert_close(
            module.value_targets(batch, values, next_turn(values, batch.turn_mask), errors), torch.tensor(expected)
        )


REPLAY = ("--model.critic.replay=2", "--model.critic.replay_steps=3", "--model.critic.replay_batch=3")


def test_replay_adds_steps_and_a_resumed_run_goes_on_as_it_would_have(
    fit: Callable[..., int], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    optimize = ActorCritic.optimize

    def counted(self: ActorCritic, name: str, losses: Iterable[torch.Tensor], metric: str) -> None:
        steps.append(metric)
        optimize(self, name, losses, metric)

    monkeypatch.setattr(ActorCritic, "optimize", counted)
    assert fit(*REPLAY, "--trainer.max_epochs=3") == 0
    assert steps.count("loss/critic") == 3
    assert steps.count("loss/critic/replay") == 3 * 3
    assert fit(*REPLAY, "--trainer.max_epochs=2") == 0
    checkpoint = run_folder.with_name("version_1") / "checkpoints" / "last.ckpt"
    assert fit(*REPLAY, "--trainer.max_epochs=3", "--ckpt_path", str(checkpoint)) == 0
    whole, resumed = (read_run(run_folder.with_name(name)).scalars for name in ("version_0", "version_2"))
    last = max(whole["loss/critic/replay"])
    assert resumed["loss/critic/replay"][last] == pytest.approx(whole["loss/critic/replay"][last], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"epochs": 0}, "critic.epochs is 0"),
        ({"replay": -1}, "critic.replay is -1"),
        ({"replay": 4, "replay_steps": 0}, "critic.replay_steps is 0"),
        ({"replay_batch": 0}, "critic.replay_batch is 0"),
        ({"loss_weight": 0.0}, "critic.loss_weight is 0.0"),
        ({"value_clip": 0.0}, "critic.value_clip is 0.0"),
    ],
)
def test_bad_settings_of_a_critic(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        LanguageModelCritic(**settings)


def test_bad_settings_of_an_algorithm() -> None:
    with pytest.raises(ConfigurationError, match="critic_lambda is 1.5"):
        CoLLMCC(critic_lambda=1.5, **SPEC)
