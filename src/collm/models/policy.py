"""An agent's policy: a causal language model as a distribution over responses, given the agent's history."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from collm.models.agent_files import base_name, copy_model, generation_config, make_readable
from collm.models.agent_record import AGENT_FILE, SETTINGS
from collm.models.backbone import Backbone
from collm.models.dialogue import Dialogue
from collm.models.loading import encode_data, load_tokenizer
from collm.models.policy_spec import PolicySpec
from collm.models.scores import score
from collm.packing import SequenceBatch
from collm.runtime.naming import folder_name
from collm.sampling_mask import SamplingMask
from collm.trajectory import Action


class Response(NamedTuple):
    """What an engine sampled for one prompt.

    Args:
        token_ids: Sampled tokens, L of them.
        log_probs: Log-probability of each, L of them.
        sampling_mask: The set each was drawn from, over which its log-probability is normalized; None for all tokens.
    """

    token_ids: Sequence[int]
    log_probs: Sequence[float]
    sampling_mask: SamplingMask | None = None


class Policy:
    """pi_i(a_i | h_i) of one agent, over a backbone that it may share with others.

    Its parameters are those of the backbone, which the algorithm owns. It does not generate: an engine of
    `collm.inference` does, with the weights of the backbone.

    Args:
        agent_id: The agent's name.
        spec: Settings of the model and of sampling.
        backbone: The language model.
        adapter: LoRA adapter that belongs to this policy; None where all weights of the backbone do.
    """

    has_weights = True  # here; those of `engine: endpoint` are elsewhere

    def __init__(self, agent_id: str, spec: PolicySpec, backbone: Backbone, adapter: str | None):
        self.agent_id = agent_id
        self.spec = spec
        self.backbone = backbone
        self.adapter = adapter
        self.tokenizer = load_tokenizer(spec.path)
        self.dialogue = make_dialogue(spec)
        eos = backbone.lm.generation_config.eos_token_id if backbone.lm.generation_config else None
        self.eos_ids = {self.tokenizer.eos_token_id} | set([eos] if isinstance(eos, int) else eos or [])
        self.allowed_ids = spec.allowed_ids()

    @property
    def device(self) -> torch.device:
        """Device of its forward passes."""
        return self.backbone.device

    def parameters(self) -> list[nn.Parameter]:
        """Parameters that train when this agent learns."""
        return self.backbone.adapter_parameters(self.adapter)

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        """Tokens of the agent's history o_0, a_0, ..., o_t."""
        return self.dialogue.prompt(observations, actions)

    def actions(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Response],
        version: int | None = None,
    ) -> list[Action]:
        """Generated responses as actions.

        Args:
            prompts: Tokens of each prompt.
            responses: What was sampled.
            version: Number of updates behind the weights that generated them.
        """
        texts = self.tokenizer.batch_decode([list(one.token_ids) for one in responses], skip_special_tokens=True)
        return [
            Action(
                text,
                prompt,
                one.token_ids,
                one.log_probs,
                truncated=one.token_ids[-1] not in self.eos_ids,
                policy_version=version,
                sampling_mask=one.sampling_mask,
            )
            for text, prompt, one in zip(texts, prompts, responses, strict=True)
        ]

    def encode_action(self, text: str, prompt: Sequence[int]) -> Action:
        """`text` as an action of this policy: its tokens and the end-of-sequence token, if both may be written.

        A text of `max_new_tokens` or more is cut there and has no end, as if it had been sampled.
        """
        ids, limit = encode_data(self.tokenizer, text), self.spec.max_new_tokens
        ends = self.allowed_ids is None and len(ids) < limit
        ids = [*ids, self.tokenizer.eos_token_id] if ends else ids[:limit]
        return Action(text, prompt, ids, [0.0] * len(ids), truncated=not ends)

    def log_probs(self, batch: SequenceBatch, adapter: str | None = "own") -> tuple[Tensor, Tensor]:
        """Log-probability of every action token and entropy of the distribution it came from.

        Both are those of the distribution that was sampled where the batch has its sampling mask. The head is applied
        only where an action token is predicted, so that no [R, L, V] tensor of logits exists.

        Args:
            batch: Rows of tokens whose scored positions are action tokens.
            adapter: "own", or None for the backbone without adapters (the reference policy of LoRA agents).

        Returns:
            Two tensors [R, L], 0 outside the action mask.
        """
        self.backbone.activate(self.adapter if adapter == "own" else adapter)
        return self.backbone.with_weights(lambda: self._log_probs(batch))

    def _log_probs(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        mask = batch.action_mask
        # the token at position l is predicted from position l - 1; a prompt has at least one token
        hidden = self.backbone.hidden_states(batch.ids, batch.attention_mask, mask.roll(-1, dims=1))
        scores = score(
            self.backbone.logits,
            hidden[:, :-1][mask[:, 1:]],
            batch.ids[:, 1:][mask[:, 1:]],
            self.backbone.vocabulary_size,
            self.spec.temperature,
            self.allowed_ids,
            batch.sampling_mask,
        )
        log_probs, entropies = (values.new_zeros(mask.shape) for values in scores)
        log_probs[mask], entropies[mask] = scores
        return log_probs, entropies

    def record(self) -> dict[str, Any]:
        """How prompts are written and responses sampled, as plain data.

        `base` is where the weights began, a hub name or the last part of a folder, and `end_ids` end a response.
        """
        ends = sorted(self.eos_ids)
        return {
            "agent_id": self.agent_id,
            "base": base_name(self.spec.path),
            "context": self.spec.max_tokens(),
            "end_ids": ends,
            "ends": self.tokenizer.convert_ids_to_tokens(ends),
            **{name: getattr(self.spec, name) for name in SETTINGS},
        }

    def copy_base(self, folder: str | Path, names: dict[str, str]) -> str:
        """Copy the model under the adapter to `folder` unless it is on the hub.

        Args:
            folder: Folder of exported agents.
            names: Copies made so far, by path.

        Returns:
            Path of the model for the configuration of an adapter in a neighbouring folder.
        """
        path = self.spec.path
        name = base_name(path)
        if name == path and "/" in path:
            return path
        if path not in names:
            names[path] = f"base.{folder_name(name)}" + f".{len(names)}" * bool(names)  # no agent's folder has a dot
            copy_model(path, Path(folder, names[path]))
            make_readable(Path(folder, names[path]))
        return f"../{names[path]}"

    def save(
        self,
        folder: str | Path,
        weights: Mapping[str, Tensor] | None = None,
        merged: bool = False,
        base: str | None = None,
    ) -> None:
        """Write the agent as a Hugging Face folder or a PEFT folder, with all that others need to sample as it does.

        Args:
            folder: Folder to write; it is created.
            weights: State dict of the language model, where its own parameters are sharded.
            merged: Write a complete model instead of an adapter.
            base: Path of the model in the adapter's configuration; by default the path it was loaded from.
        """
        self.backbone.save(folder, self.adapter, weights, merged, base)
        self.tokenizer.save_pretrained(folder)
        record = self.record()
        if merged:
            record["quantization"] = None
        Path(folder, AGENT_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        config = generation_config(record, self.tokenizer, self.backbone.vocabulary_size, self.allowed_ids)
        config.save_pretrained(folder)
        make_readable(folder)


def make_dialogue(spec: PolicySpec) -> Dialogue:
    """The dialogue format of `spec`; needs the tokenizer only, no weights."""
    return Dialogue(
        load_tokenizer(spec.path),
        spec.prompt_room(),
        spec.chat_template,
        spec.template_arguments,
        spec.system_prompt,
        spec.control_tokens_in_data,
    )
