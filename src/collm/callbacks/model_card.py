"""The model card (README.md) of an exported agent, written from its run."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import lightning as L

from collm.environments.base import EpisodeFailure
from collm.environments.contract import begun

_PEFT = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
agent = AutoPeftModelForCausalLM.from_pretrained(".")  # in this folder: its base may be the folder beside it"""
_PLAIN = """from transformers import AutoModelForCausalLM, AutoTokenizer
agent = AutoModelForCausalLM.from_pretrained(".")"""


def model_card(trainer: L.Trainer, module: Any, agent_id: str, adapter: bool, best: Any = None) -> str:
    """The card of one agent: what it was trained for, with whom, how well, and how to run it.

    Args:
        trainer: The trainer at the end of the run.
        module: The algorithm.
        agent_id: The agent.
        adapter: Whether the folder holds an adapter.
        best: Return and joint samples of the checkpoint it is of; None for the end of the run.
    """
    policy, data = module.policies[agent_id], trainer.datamodule  # type: ignore[attr-defined]
    others = [name for name in module.agent_ids if name != agent_id]
    spec, record = policy.spec, policy.record()
    joint_samples = best.joint_samples if best else module.joint_samples
    lines = [
        "---",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags: [collm, multi-agent-reinforcement-learning]",
        *([f"base_model: {record['base']}"] if "/" in record["base"] else []),
        "---",
        f"# {agent_id} of a team for {type(data.environment).__name__}",
        "",
        f"Trained with {type(module).__name__} (collm) from `{record['base']}`, {joint_samples} joint samples, "
        + (f"together with {', '.join(others)}." if others else "alone."),
        "",
    ]
    metrics = trainer.callback_metrics
    if best:
        lines += [
            f"Team return on held-out tasks: {best.value:.3f}, the best of all evaluations of its run, so that another "
            "evaluation will probably find less.",
            "",
        ]
    elif "eval/return" in metrics:
        low, high = (float(metrics.get(f"eval/return_{end}", float("nan"))) for end in ("low", "high"))
        value = float(metrics["eval/return"])
        lines += [
            f"Team return on held-out tasks: {value:.3f} [{low:.3f}, {high:.3f}] (95 % interval), at the end.",
            "",
        ]
    sampled = f"temperature {spec.temperature:g}, top-p {spec.top_p:g}, top-k {spec.top_k or 'off'}"
    lines += [
        f"It samples at {sampled}, at most {spec.max_new_tokens} tokens (`generation_config.json`); `collm_agent.json` "
        "has the rest of what its prompts need.",
        "",
        "```python",
        *(_PEFT if adapter else _PLAIN).splitlines(),
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        "```",
        "",
    ]
    with contextlib.suppress(EpisodeFailure):
        _, shown = begun(data.environment, data.train_tasks[0], random.Random(0))
        lines += ["It was shown, for example:", "", *("    " + line for line in shown[agent_id].splitlines()), ""]
    return "\n".join(lines)
