"""Floating-point operations of an update, and what an iteration took."""

from __future__ import annotations

from typing import Any

import lightning as L

from collm.algorithms.base import MultiAgentModule
from collm.callbacks.resources import LogResources, distinct_actions
from collm.models.policy import Policy
from collm.packing import action_sequences
from collm.trajectory import RolloutBatch


class Iterations(L.Callback):
    """Keeps what each iteration took and the operations its updates need; stands after `LogResources`.

    Args:
        lora: Whether only adapters train, so that no gradients of the models' own matrices are needed.
    """

    def __init__(self, lora: bool):
        self.lora = lora
        self.measured: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: MultiAgentModule, outputs: Any, batch: RolloutBatch, *args: Any
    ) -> None:
        resources = next(one for one in trainer.callbacks if isinstance(one, LogResources))
        seconds = resources.reading.seconds
        names = ("generate", "values", "update/policy", "update/critic")
        operations, tokens = work_of_update(pl_module, batch, self.lora)
        self.measured.append(
            {
                "seconds": resources.reading.wall_time,
                **{name: seconds.get(name, 0.0) for name in names},
                "joint_samples": float(batch.joint_samples),
                "sampled_tokens": float(sum(len(action.token_ids) for action in distinct_actions(batch))),
                "operations": operations,
                "tokens": float(tokens),
            }
        )


def work_of_update(module: Any, batch: RolloutBatch, lora: bool) -> tuple[float, int]:
    """Floating-point operations that one pass of every network over a rollout needs, and its tokens.

    A token takes two operations for each weight of a layer forward, two for the gradient of what it read, and two for
    that of the weight, which frozen weights (`lora`) do not have. A head counts where a token is predicted, attention
    for what is seen. What is computed again for the backward pass is no part of it, nor are adapters.
    """
    operations, tokens = 0.0, 0
    passes = 4 if lora else 6
    networks = [(module.policies[name], action_sequences(batch.trajectories, name)) for name in module.agent_ids]
    networks += [(critic, critic.encode(batch.trajectories)) for critic in module.critics.values()]
    for network, sequences in networks:
        lm = network.backbone.lm
        config = lm.config
        head = lm.get_output_embeddings().weight.numel()
        layers = sum(
            weight.numel() for name, weight in lm.named_parameters() if ".layers." in name and "lora_" not in name
        )
        width = config.num_attention_heads * config.head_dim
        for sequence in sequences:
            length = len(sequence.ids)
            tokens += length
            operations += passes * layers * length
            # 2 for the scores and 2 for what is read forward, over half of all pairs; twice that backward
            operations += 6 * config.num_hidden_layers * width * length**2
            if isinstance(network, Policy):
                operations += passes * head * sum(turn >= 0 for turn in sequence.turns)
    return operations, tokens
