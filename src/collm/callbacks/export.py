"""Agents that leave: at the end of `fit` each becomes an ordinary Hugging Face or PEFT folder, without the critic."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L

from collm.runtime.collectives import gathered
from collm.runtime.files import replacing
from collm.runtime.naming import folder_name


class ExportAgents(L.Callback):
    """Writes every agent to `agents/<agent id>` in the run's folder, with its tokenizer.

    The folder is loaded with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`, without this
    package. An agent with a LoRA adapter is written as that adapter, which names the weights it belongs on; where those
    were drawn at random, as the whole model, with the adapter added to its weights. Characters of an agent's id other
    than ASCII letters, digits, `_`, `-` and `~` are percent-encoded.
    """

    # not at the end of training, which does not come when a run goes on from a checkpoint of its last update
    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # the name is broadcast, so all ranks have to ask
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "agents"
        with replacing(folder) if trainer.is_global_zero else nullcontext() as unfinished:
            for agent_id, policy in pl_module.policies.items():
                # adapters are whole everywhere; all ranks have to help where the weights themselves are sharded
                whole = policy.adapter is None or policy.backbone.drawn
                weights = gathered(policy.backbone.own_state(), trainer.is_global_zero) if whole else None
                if unfinished is not None:
                    policy.save(unfinished / folder_name(agent_id), weights)
        if trainer.is_global_zero:
            print(f"\nagents, pictures and transcripts are in {folder.parent}")
