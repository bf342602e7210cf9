"""One update of CoLLM-CC and CoLLM-DC at double precision against the plainest way to compute it.

There, every response and every history is a forward pass of its own, and losses are summed as the paper writes them;
here, all turns come from one pass, in micro-batches.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from collm.algorithms.actor_critic import ActorCritic
from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.collm_dc import CoLLMDC
from collm.critics.language_model import LanguageModelCritic
from collm.models.policy import Policy, PolicySpec
from collm.models.specs import ModelSpec
from collm.samplers.parallel import Parallel
from collm.trajectory import RolloutBatch, Trajectory, collate
from toy import Toy
from untrained import without_trainer

DISCOUNT, VALUE_WEIGHT, ENTROPY_WEIGHT = 0.9, 0.6, 0.02


def build(algorithm: type[ActorCritic], folder: str, max_tokens: int, rank: int) -> ActorCritic:
    """An algorithm without a trainer whose steps subtract the gradient; with adapters of `rank` if it is not 0."""
    torch.manual_seed(0)
    module = algorithm(
        agent_ids=Toy().agent_ids,
        policy=PolicySpec(folder, learning_rate=1.0, max_new_tokens=9, temperature=0.7, lora_rank=rank),
        critic=LanguageModelCritic(ModelSpec(folder, learning_rate=1.0, lora_rank=rank), loss_weight=VALUE_WEIGHT),
        parameters="lora" if rank else "separate",
        optimizer=torch.optim.SGD,
        discount=DISCOUNT,
        entropy_weight=ENTROPY_WEIGHT,
        gradient_clip_norm=0.0,
        tokens_per_micro_batch=max_tokens,
    )
    without_trainer(module)
    module.double()
    for critic in module.critics.values():
        torch.nn.init.normal_(critic.network.head.weight)  # a fresh head gives its weights no gradient
    for name, weight in module.named_parameters():
        if "lora_" in name:  # and so does a fresh adapter
            torch.nn.init.normal_(weight, std=0.2)
    module.num_rollouts = 1
    return module


def play(module: ActorCritic) -> RolloutBatch:
    """Four episodes of one to three turns and responses of different lengths."""
    game = Toy(horizon=3)
    for policy in module.policies.values():
        policy.eos_ids |= set(range(0, 446, 6))
    trajectories = Parallel().rollout(game, game.tasks("train"), module.policies, 3, "cpu")
    for row, trajectory in enumerate(trajectories):
        del trajectory.turns[1 + row % 3 :]
        for index, turn in enumerate(trajectory.turns):
            turn.reward = float(row - 1.5 * index)
            for agent_id, action in turn.actions.items():  # so that their sums are exact, and no ratio is 1
                rounded = [round(64 * log_prob) / 64 for log_prob in action.log_probs]
                turn.actions[agent_id] = replace(action, log_probs=rounded)
    batch = collate(trajectories)
    return replace(batch, rewards=batch.rewards.double())


def response(policy: Policy, prompt: list[int], tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probability of a response and the sum of the entropies it was drawn from."""
    with policy.backbone.using(policy.adapter):
        logits = policy.backbone.lm(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    log_probs = (logits / 0.7).log_softmax(-1)
    return log_probs[range(len(tokens)), tokens].sum(), -(log_probs.exp() * log_probs).sum()


def value(critic: LanguageModelCritic, trajectory: Trajectory, turn: int) -> Tensor:
    """V(h_turn), from the history up to there alone."""
    (row,) = critic.encode([replace(trajectory, turns=trajectory.turns[: turn + 1])])
    network = critic.network
    with network.backbone.using(network.adapter):
        return network.head(network.backbone.lm.model(torch.tensor([row.ids])).last_hidden_state[0, -1])[0]


def expected_gradients(module: ActorCritic, batch: RolloutBatch) -> dict[str, list[Tensor]]:
    """Gradients of all networks: equations (2) and (3), and with one critic for all agents (4) and (5)."""
    expected, errors = {}, {}
    for name, critic in module.critics.items():
        values = {
            (b, t): value(critic, trajectory, t)
            for b, trajectory in enumerate(batch.trajectories)
            for t in range(len(trajectory.turns))
        }
        nothing = torch.zeros((), dtype=torch.double)
        targets = {
            (b, t): batch.trajectories[b].turns[t].reward + DISCOUNT * values.get((b, t + 1), nothing).detach()
            for b, t in values
        }
        loss = VALUE_WEIGHT * sum((values[key] - targets[key]).square() for key in values) / len(values)
        with critic.network.backbone.using(critic.network.adapter):
            expected[name] = torch.autograd.grad(loss, critic.trainable_parameters())
        for agent_id in critic.agent_ids:
            errors[agent_id] = {key: (targets[key] - values[key]).detach() for key in values}
    for agent_id, policy in module.policies.items():
        loss, entropy, num_tokens = torch.zeros((), dtype=torch.double), 0.0, 0
        for (b, t), error in errors[agent_id].items():
            action = batch.trajectories[b].turns[t].actions[agent_id]
            log_prob, entropies = response(policy, action.prompt_ids, action.token_ids)
            ratio = (log_prob - torch.tensor(action.log_probs).sum()).exp()
            loss = loss - ratio * error / len(batch.trajectories)
            entropy, num_tokens = entropy + entropies, num_tokens + len(action.token_ids)
        with policy.backbone.using(policy.adapter):
            expected[agent_id] = torch.autograd.grad(loss - ENTROPY_WEIGHT * entropy / num_tokens, policy.parameters())
    return expected


@pytest.fixture
def _double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's norms compute in single precision whatever the weights are."""

    def norm(self: LlamaRMSNorm, states: Tensor) -> Tensor:
        return self.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)


@pytest.mark.usefixtures("_double_norms")
@pytest.mark.parametrize("algorithm", [CoLLMCC, CoLLMDC])
@pytest.mark.parametrize("max_tokens", [10_000, 150])
@pytest.mark.parametrize("rank", [0, 2])
def test_an_update_is_the_plain_one(tiny_folder: str, algorithm: type[ActorCritic], max_tokens: int, rank: int) -> None:
    module = build(algorithm, tiny_folder, max_tokens, rank)
    batch = play(module)
    assert sorted(len(trajectory.turns) for trajectory in batch.trajectories) == [1, 1, 2, 3]
    module.initialize_critics(batch)
    expected = expected_gradients(module, batch)
    before = {name: [w.detach().clone() for w in weights] for name, weights in module.learners.items()}

    module.training_step(batch, 0)
    for name, weights in module.learners.items():
        moves = [old - new.detach() for old, new in zip(before[name], weights, strict=True)]
        assert max(move.abs().max() for move in moves) > 1e-3
        for move, gradient in zip(moves, expected[name], strict=True):
            assert_close(move, gradient, atol=1e-9, rtol=1e-7)
