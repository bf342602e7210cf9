"""What an update leaves in memory: weights and optimizer states of what trains, and nothing else."""

from __future__ import annotations

import gc

import pytest
import torch

from collm.algorithms.collm_cc import CoLLMCC
from collm.critics.language_model import LanguageModelCritic
from collm.environments.workload import Workload
from collm.models.policy import PolicySpec
from collm.models.specs import ModelSpec
from collm.samplers.parallel import Parallel
from collm.trajectory import collate
from untrained import without_trainer


def held() -> int:
    """Bytes of all tensors there are, gradients included."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    tensors += [one.grad for one in tensors if one.is_leaf and one.grad is not None]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def held_by(num_agents: int, folder: str, rank: int) -> tuple[int, int]:
    """Bytes that a team and its critic hold after an update, and how many numbers of an agent train."""
    before = held()
    game = Workload(num_agents, horizon=2, prompt_words=4)
    module = CoLLMCC(
        agent_ids=game.agent_ids,
        policy=PolicySpec(folder, max_new_tokens=4, lora_rank=rank),
        critic=LanguageModelCritic(ModelSpec(folder, lora_rank=rank)),
        parameters="lora" if rank else "separate",
        tokens_per_micro_batch=100,
    )
    without_trainer(module)
    module.num_rollouts = 1
    batch = collate(Parallel().rollout(game, game.tasks("train")[:3], module.policies, 0, "cpu"))
    module.training_step(batch, 0)
    del batch
    trains = module.learners["agent_1"]
    # what else each of them has: a count of steps for every weight, and the angles of a model of its own
    little = 4 * len(trains) + (0 if rank else sum(4 * one.numel() for one in module.backbones["agent_1"].buffers()))
    return held() - before - little * num_agents, sum(weight.numel() for weight in trains)


@pytest.mark.parametrize("rank", [0, 2])
def test_agents_add_what_they_train_and_its_two_moments(tiny_folder: str, rank: int) -> None:
    few, numbers = held_by(2, tiny_folder, rank)
    many, _ = held_by(5, tiny_folder, rank)
    assert many - few == 3 * 3 * 4 * numbers  # three more agents, three floats of 4 bytes
    assert numbers > 2000
