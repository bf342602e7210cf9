"""Policies whose weights are elsewhere: prompts are written here, responses by servers, people or scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from collm.models.dialogue import Dialogue
from collm.models.loading import load_config, load_tokenizer, resolve_path
from collm.models.policy import Policy, make_dialogue
from collm.models.policy_spec import PolicySpec
from collm.trajectory import Action


class Prompt(list):
    """Tokens or messages of a prompt, and the agent's last action in its episode, if any."""

    last: Action | None = None


class RemotePolicy(Policy):
    """A policy that reads and writes tokens here and samples elsewhere.

    Args:
        agent_id: The agent's name.
        spec: Its settings; only the tokenizer of `path` is loaded.
    """

    has_weights = False
    device = torch.device("meta")  # none of its own

    def __init__(self, agent_id: str, spec: PolicySpec):
        self.agent_id = agent_id
        self.spec = spec
        self.adapter = None
        self.tokenizer = load_tokenizer(spec.path)
        self.dialogue = make_dialogue(spec)
        self.eos_ids = end_tokens(spec.path) | {self.tokenizer.eos_token_id}
        self.allowed_ids = spec.allowed_ids()

    def parameters(self) -> list[nn.Parameter]:
        """Nothing: what trains is here."""
        return []

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        """Tokens of the agent's history, as a `Prompt`."""
        prompt = Prompt(self.dialogue.prompt(observations, actions))
        prompt.last = actions[-1] if actions else None
        return prompt


class TextPolicy(RemotePolicy):
    """A policy of which no token is known: prompts are messages, and actions have text only.

    Args:
        agent_id: The agent's name.
        spec: Its settings, of which `path` is not read.
    """

    def __init__(self, agent_id: str, spec: PolicySpec):
        self.agent_id = agent_id
        self.spec = spec
        self.adapter = None

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[Any]:
        """The agent's history as messages with `role` and `content`, as a `Prompt`."""
        system = self.spec.system_prompt
        prompt = Prompt([{"role": "system", "content": system}] if system else [])
        for observation, action in zip(observations, [*actions, None], strict=True):
            prompt.append({"role": "user", "content": observation})
            if action is not None:
                prompt.append({"role": "assistant", "content": action.text})
        prompt.last = actions[-1] if actions else None
        return prompt

    def encode_action(self, text: str, prompt: Sequence[Any]) -> Action:
        """`text` as an action, without tokens."""
        return Action(text)


class TextDialogue:
    """Stands for the dialogue of a `TextPolicy`: whether prompts fit is for its server to say."""

    def check_fits(self, agent_id: str, task_id: str, observation: str) -> None:
        """Accept everything."""


def remote_policy(agent_id: str, spec: PolicySpec) -> RemotePolicy:
    """The policy of an agent without weights here."""
    return TextPolicy(agent_id, spec) if spec.knows_text_only else RemotePolicy(agent_id, spec)


def dialogue_of(spec: PolicySpec) -> Dialogue | TextDialogue:
    """The dialogue format of any agent."""
    return TextDialogue() if spec.knows_text_only else make_dialogue(spec)


def end_tokens(path: str) -> set[int]:
    """Tokens that end a response of the model at `path`, from its configuration alone."""
    try:
        ends = GenerationConfig.from_pretrained(resolve_path(path)).eos_token_id
    except (OSError, ValueError):
        ends = getattr(load_config(path).get_text_config(), "eos_token_id", None)
    return {ends} if isinstance(ends, int) else set(ends or [])
