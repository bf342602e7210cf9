"""Time and tokens of each iteration, and the floating-point operations of its updates."""

from __future__ import annotations

from typing import Any

import lightning as L

from collm.callbacks.resources import LogResources
from collm.models.policy import Policy
from collm.packing import action_sequences
from collm.trajectory import RolloutBatch, distinct_actions


class Iterations(L.Callback):
    """Records time, tokens and operations of each iteration; must come after `LogResources` in the callbacks.

    Args:
        lora: Whether only LoRA adapters are trained, so that gradients of the base weights are not needed.
    """

    def __init__(self, lora: bool):
        self.lora = lora
        self.measured: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: RolloutBatch, *args: Any) -> None:
        resources = next(callback for callback in trainer.callbacks if isinstance(callback, LogResources))
        seconds = resources.reading.seconds
        names = ("generate", "values", "update/policy", "update/critic")
        operations, tokens = work_of_update(pl_module, batch, self.lora)
        self.measured.append(
            {
                "seconds": resources.reading.wall_time,
                **{name: seconds.get(name, 0.0) for name in names},
                "joint_samples": float(batch.joint_samples),
                "sampled_tokens": float(sum(len(action.token_ids) for action in distinct_actions(batch.trajectories))),
                "operations": operations,
                "tokens": float(tokens),
            }
        )


def play_and_learn(module: Any, data: Any, accelerator: str, rounds: Iterations, *others: L.Callback) -> None:
    """One epoch of `data` on one device, without logs, checkpoints and evaluations; fills `rounds`."""
    module.hparams.clear()  # they hold objects that cannot be logged
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[LogResources(synchronize=True), rounds, *others],
    )
    trainer.fit(module, datamodule=data)


def work_of_update(module: Any, batch: RolloutBatch, lora: bool) -> tuple[float, int]:
    """Floating-point operations for one forward and backward pass of every network over a rollout, and its tokens.

    For each weight of a layer, a token takes two operations forward, two for the gradient of its input, and two for the
    gradient of the weight, which frozen weights (`lora`) do not need. The language model head counts only at predicted
    tokens. Recomputation in the backward pass and adapters are not counted.
    """
    operations, tokens = 0.0, 0
    passes = 4 if lora else 6
    networks = [(module.policies[name], action_sequences(batch.trajectories, name)) for name in module.agent_ids]
    networks += [(critic.network, critic.encode(batch.trajectories)) for critic in module.critics.values()]
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
            # forward 2 for the scores and 2 for the weighted values, over half of all pairs; twice that backward
            operations += 6 * config.num_hidden_layers * width * length**2
            if isinstance(network, Policy):
                operations += passes * head * sum(turn >= 0 for turn in sequence.turns)
    return operations, tokens
