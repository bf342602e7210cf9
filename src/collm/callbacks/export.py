"""Agents that leave: at the end of `fit` each becomes an ordinary Hugging Face or PEFT folder, without the critic."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import lightning as L

from collm.collectives import gathered
from collm.files import replacing


class ExportAgents(L.Callback):
    """Writes every agent to `agents/<agent id>` in the run's folder, with its tokenizer.

    The folder is loaded with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`, without this
    package. An agent with a LoRA adapter is written as that adapter, which names the weights it belongs on.
    """

    # not at the end of training, which does not come when a run goes on from a checkpoint of its last update
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # the name is broadcast, so all ranks have to ask
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "agents"
        with replacing(folder) if trainer.is_global_zero else nullcontext() as unfinished:
            for agent_id, policy in pl_module.policies.items():
                # adapters are whole everywhere; all ranks have to help where the weights themselves are sharded
                weights = None if policy.adapter else gathered(policy.backbone.own_state(), trainer.is_global_zero)
                if unfinished is not None:
                    policy.save(unfinished / agent_id, weights)
        if trainer.is_global_zero:
            print(f"\nagents, pictures and transcripts are in {folder.parent}")
