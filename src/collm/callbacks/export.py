"""Export of every agent, without critics, to an ordinary Hugging Face or PEFT folder at the end of `fit`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L

from collm.runtime.collectives import full_state
from collm.runtime.files import replacing
from collm.runtime.naming import folder_name


class ExportAgents(L.Callback):
    """Writes every agent to `agents/<agent id>` in the run's folder, with its tokenizer.

    `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load the folder without this package. An
    agent with LoRA is written as its adapter, which names its base model; if that was initialized at random, the full
    model is written with the adapter merged into its weights. Characters of an agent id other than ASCII letters,
    digits, `_`, `-` and `~` are percent-encoded.
    """

    # `on_train_end` is not called when a run resumes from the checkpoint of its last update
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run:
            return
        # a broadcast, so all ranks have to take part
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "agents"
        with replacing(folder) if trainer.is_global_zero else nullcontext() as unfinished:
            for agent_id, policy in pl_module.policies.items():
                # adapters are replicated; weights may be sharded, so all ranks have to take part in gathering them
                with_weights = policy.adapter is None or policy.backbone.random_weights
                weights = full_state(policy.backbone.own_state(), trainer.is_global_zero) if with_weights else None
                if unfinished is not None:
                    policy.save(unfinished / folder_name(agent_id), weights)
