"""What else critics may learn from: other targets, earlier rollouts, the text they read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from collm.algorithms.actor_critic import ActorCritic
from collm.algorithms.collm_cc import CoLLMCC
from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.critic import Critic, CriticSpec
from collm.models.policy import PolicySpec
from collm.studies.runs import read_run
from collm.trajectory import RolloutBatch, TokenSequence, pad_sequences

SPEC = {"agent_ids": ["a", "b"], "policy": PolicySpec("tiny"), "critic": CriticSpec("tiny")}


def test_targets_have_a_lambda_of_their_own() -> None:
    """Rewards 1, 2 and values 5, 3: TD targets 1 + 3 and 2, Monte-Carlo ones 3 and 2."""
    batch = RolloutBatch([], torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]))
    values = torch.tensor([[5.0, 3.0]])
    errors = torch.tensor([[-1.0, -1.0]])  # of lambda 0
    for setting, expected in ((None, [[4.0, 2.0]]), (1.0, [[3.0, 2.0]]), (0.5, [[3.5, 2.0]])):
        module = CoLLMCC(gae_lambda=0.0, critic_lambda=setting, **SPEC)
        assert_close(module.value_targets(values, errors, values, batch), torch.tensor(expected))


def test_lm_loss_is_that_of_every_token_but_the_first(tiny_folder: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(tiny_folder, "float32")
    critic = Critic(CriticSpec(tiny_folder), backbone, None, ["a"])
    rows = [TokenSequence(0, [5, 6, 7, 8], [-1, -1, -1, 0]), TokenSequence(1, [9, 10], [-1, 0])]
    batch = pad_sequences(rows, 0, "cpu")
    _, found = critic.states_and_lm_loss(batch)
    expected = sum(
        len(row.ids[1:]) * backbone.lm(torch.tensor([row.ids]), labels=torch.tensor([row.ids])).loss for row in rows
    )
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.backward()
    assert backbone.lm.get_input_embeddings().weight.grad.abs().sum() > 0


REPLAY = ("--model.critic_replay=2", "--model.critic_replay_steps=3", "--model.critic_replay_batch=3")


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


def test_lm_loss_moves_the_head_of_the_language_model(fit: Callable[..., int], run_folder: Path) -> None:
    weights = []
    for version, weight in enumerate((0.0, 1.0)):
        assert fit("--model.lm_loss_weight", str(weight), "--trainer.max_epochs=1") == 0
        path = run_folder.with_name(f"version_{version}") / "checkpoints" / "last.ckpt"
        weights.append(torch.load(path, weights_only=True)["state_dict"])
    critic = [name for name in weights[0] if name.startswith("backbones.<critic>.")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in critic)
    actors = [name for name in weights[0] if name.startswith("backbones.<a")]
    assert actors
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in actors)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"critic_lambda": 1.5}, "critic_lambda is 1.5"),
        ({"critic_replay": -1}, "critic_replay is -1"),
        ({"critic_replay": 4, "critic_replay_steps": 0}, "critic_replay_steps 0"),
        ({"critic_replay_batch": 0}, "critic_replay_batch 0"),
        ({"lm_loss_weight": -0.1}, "lm_loss_weight is -0.1"),
    ],
)
def test_bad_settings(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        CoLLMCC(**SPEC, **settings)
