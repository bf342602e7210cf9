"""Export of every agent, without critics, to an ordinary Hugging Face or PEFT folder at the end of `fit`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from collm.callbacks.hub import check_access, push
from collm.callbacks.model_card import model_card
from collm.errors import ConfigurationError
from collm.runtime.checks import check_choice
from collm.runtime.collectives import full_state
from collm.runtime.files import replacing
from collm.runtime.naming import folder_name


class ExportAgents(L.Callback):
    """Writes every agent to `agents/<agent id>` in the run's folder, with its tokenizer and a model card.

    `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load the folder without this package. An
    agent with LoRA is written as its adapter, which names its base model: a hub name, or for a local model the copy
    `../base.<name>` beside it. If the base was initialized at random, the full model is written with the adapter merged
    into its weights. Agents that `engine: endpoint` answers for are not written. Characters of an agent id other than
    ASCII letters, digits, `_`, `-` and `~` are percent-encoded.

    Args:
        checkpoint: Which weights: `last`, those at the end of the run, or `best`, those with the highest return on
            held-out tasks of all evaluations after an update; the algorithm then holds them too.
        merged: Write agents with LoRA as full models too.
        push_to_hub: Also push every agent to a repository of the Hugging Face hub: this name, such as `me/team`,
            followed by `-` and the agent's.
    """

    def __init__(
        self, checkpoint: Literal["last", "best"] = "last", merged: bool = False, push_to_hub: str | None = None
    ):
        self.checkpoint = check_choice("ExportAgents.checkpoint", checkpoint, ("last", "best"))
        self.merged = merged
        self.push_to_hub = push_to_hub

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if self.checkpoint == "best" and stage == "fit" and best_kept(trainer) is None:
            raise ConfigurationError(
                "ExportAgents.checkpoint is 'best', but no ModelCheckpoint among the callbacks monitors eval/return; "
                "add one, as configs/base.yaml does, or export the last."
            )
        if self.push_to_hub and stage == "fit" and trainer.is_global_zero:
            check_access(self.push_to_hub)

    # `on_train_end` is not called when a run resumes from the checkpoint of its last update
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run:
            return
        best = restore_best(trainer, pl_module) if self.checkpoint == "best" else None
        # a broadcast, so all ranks have to take part
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "agents"
        agents = {name: policy for name, policy in pl_module.policies.items() if policy.has_weights}
        with replacing(folder) if trainer.is_global_zero else nullcontext() as unfinished:
            bases: dict[str, str] = {}  # names of copied base models by path
            for agent_id, policy in agents.items():
                # adapters are replicated; weights may be sharded, so all ranks have to take part in gathering them
                whole = policy.adapter is None or policy.backbone.random_weights or self.merged
                weights = full_state(policy.backbone.own_state(), trainer.is_global_zero) if whole else None
                if unfinished is None:
                    continue
                base = None if whole else policy.copy_base(unfinished, bases)
                policy.save(unfinished / folder_name(agent_id), weights, self.merged, base)
                card = model_card(trainer, pl_module, agent_id, adapter=not whole, best=best)
                (unfinished / folder_name(agent_id) / "README.md").write_text(card, encoding="utf-8")
        if trainer.is_global_zero and self.push_to_hub:
            push(folder, list(map(folder_name, agents)), self.push_to_hub)


class Best(NamedTuple):
    """The checkpoint with the highest return on held-out tasks.

    Args:
        value: That return.
        joint_samples: What its agents had learned from.
    """

    value: float
    joint_samples: int


def best_kept(trainer: Any) -> ModelCheckpoint | None:
    """The callback that keeps the checkpoint with the highest return on held-out tasks, if there is one."""
    kept = (one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint))
    return next((one for one in kept if one.monitor == "eval/return" and one.mode == "max"), None)


def restore_best(trainer: Any, module: Any) -> Best | None:
    """Load the weights of the best checkpoint of this run into `module`; None if there is no such checkpoint."""
    callback = best_kept(trainer)
    if callback is None or not callback.best_model_path:
        rank_zero_warn("no evaluation after an update left a checkpoint, so the last agents are exported.")
        return None
    checkpoint = trainer.strategy.load_checkpoint(callback.best_model_path)
    trainer.strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
    # the callback has forgotten the value where a run goes on in another folder
    value = checkpoint["callbacks"][callback.state_key]["best_model_score"]
    best = Best(float(value), checkpoint["collm"]["joint_samples"])
    if trainer.is_global_zero:
        print(f"exporting the best agents: return {best.value:.3f} after {best.joint_samples:,} joint samples")
    return best
