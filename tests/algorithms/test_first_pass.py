"""The passes that give a critic's values are kept for its first step: whatever lies between, the step is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.algorithms.actor_critic import ActorCritic
from collm.algorithms.collm_dc import CoLLMDC
from collm.critics.language_model import CriticSpec
from collm.models.policy import PolicySpec
from collm.samplers.parallel import Parallel
from collm.trajectory import RolloutBatch, collate
from toy import Toy
from untrained import without_trainer

Make = Callable[[], ActorCritic]


@pytest.fixture
def make(tiny_folder: str) -> Make:
    """Makes CoLLM-DC with an adapter for each critic on one backbone, without a trainer, that takes plain steps."""

    def build() -> ActorCritic:
        torch.manual_seed(0)
        module = CoLLMDC(
            agent_ids=Toy(2).agent_ids,
            parameters="lora",
            policy=PolicySpec(tiny_folder, learning_rate=1e-3, max_new_tokens=4, lora_rank=2),
            critic=CriticSpec(tiny_folder, learning_rate=0.1, lora_rank=2),
            optimizer=torch.optim.SGD,
            gradient_clip_norm=0.0,
        )
        without_trainer(module)
        for critic in module.critics.values():  # heads of 0 would give the backbone no gradient
            torch.nn.init.normal_(critic.head.weight, std=0.1)
        return module

    return build


def play(module: ActorCritic, seed: int) -> RolloutBatch:
    env = Toy(2, horizon=2, num_tasks=2)
    return collate(Parallel().rollout(env, env.tasks("train"), module.policies, seed, "cpu"))


def step(module: ActorCritic, batch: RolloutBatch, values_first: bool) -> dict[str, list[Tensor]]:
    """One step of every critic, towards 1; what trains in them afterwards."""
    read = {}
    if values_first:
        for name, critic in module.critics.items():
            histories = critic.encode(batch.trajectories)
            read[name] = histories, module.values(name, histories, batch)
    for name, critic in module.critics.items():
        if not values_first:
            histories = critic.encode(batch.trajectories)
            read[name] = histories, module.values(name, histories, batch)
        histories, values = read[name]
        module.update_critic(name, histories, values, torch.ones_like(values), batch)
    return {
        name: [weight.detach().clone() for weight in critic.trainable_parameters()]
        for name, critic in module.critics.items()
    }


def test_adapters_learn_when_all_values_come_before_all_updates(make: Make) -> None:
    module, other = make(), make()
    before = {name: critic.trainable_parameters()[-1].detach().clone() for name, critic in module.critics.items()}
    batch = play(module, 0)
    found, expected = step(module, batch, values_first=True), step(other, batch, values_first=False)
    for name, weights in found.items():
        assert_close(weights, expected[name])
        assert not torch.equal(weights[-1], before[name])  # of an adapter


def test_values_are_those_of_the_histories_they_are_asked_for(make: Make) -> None:
    module, other = make(), make()
    name = next(iter(module.critics))
    first, second = play(module, 0), play(module, 1)
    for one in (module, other):
        one.critics[name].center(torch.tensor([0.0]))
    module.values(name, module.critics[name].encode(first.trajectories), first)  # never used
    histories = module.critics[name].encode(second.trajectories)
    found = module.values(name, histories, second)
    expected = other.read(name, histories, second)
    assert_close(found, expected)
    assert not torch.allclose(found, other.read(name, other.critics[name].encode(first.trajectories), first))

    module.update_critic(name, histories, found, torch.ones_like(found), second)
    other.update_critic(name, histories, expected, torch.ones_like(found), second)
    assert_close(module.critics[name].trainable_parameters(), other.critics[name].trainable_parameters())


def test_a_step_on_other_histories_does_not_use_the_kept_passes(make: Make) -> None:
    module, other = make(), make()
    name = next(iter(module.critics))
    first, second = play(module, 0), play(module, 1)
    for one in (module, other):
        one.critics[name].center(torch.tensor([0.0]))
    module.values(name, module.critics[name].encode(first.trajectories), first)  # never used
    for one in (module, other):
        histories = one.critics[name].encode(second.trajectories)
        values = one.read(name, histories, second)
        one.update_critic(name, histories, values, torch.ones_like(values), second)
    assert_close(module.critics[name].trainable_parameters(), other.critics[name].trainable_parameters())


def test_where_a_micro_batch_has_no_room_for_all_the_rest_is_read_again(make: Make) -> None:
    module, other = make(), make()
    name = next(iter(module.critics))
    batch = play(module, 0)
    histories = module.critics[name].encode(batch.trajectories)
    assert len(histories) == 2
    module.tokens_per_micro_batch = max(len(sequence.ids) for sequence in histories)
    for one, kept in ((module, [True, False]), (other, [True])):
        values = one.values(name, histories, batch)
        assert [passed.states is not None for passed in one._first_passes[name][1]] == kept
        one.update_critic(name, histories, values, torch.ones_like(values), batch)
    assert_close(module.critics[name].trainable_parameters(), other.critics[name].trainable_parameters())
