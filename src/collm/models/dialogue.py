"""How a dialogue becomes the tokens a policy is prompted with.

The whole history h_i = (o_0, a_0, ..., o_t) is the prompt. Sampled tokens are kept as they were sampled and only the
text between them is added, so each prompt begins with the previous prompt and action: the chain that lets one forward
pass score an episode and one key/value cache serve it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer

from collm.errors import ConfigurationError
from collm.trajectory import Action

_ANSWER = "collm-answer-goes-here"


class Dialogue:
    """Renders histories for one tokenizer, with its chat template where it has one.

    Args:
        tokenizer: Tokenizer of the policy.
        max_prompt_tokens: Room for the prompt: the context length less the longest response.
        chat_template: False writes observations and responses as plain lines even if there is a template.
        template_arguments: Extra arguments of the chat template, such as `enable_thinking`.
        system_prompt: First message of every dialogue; where the chat template has no system messages, the beginning of
            the first message of the user.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_prompt_tokens: int,
        chat_template: bool = True,
        template_arguments: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
    ):
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.use_template = chat_template and bool(tokenizer.chat_template)
        self.template_arguments = dict(template_arguments or {})
        self.system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self.preface = ""
        if self.use_template and system_prompt and not self._shows_system(system_prompt):
            self.system, self.preface = [], f"{system_prompt}\n\n"

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        """Tokens of the history o_0, a_0, ..., o_t; the newest turns are kept where it does not fit.

        The first observation, which holds the instruction, is never cut. Only if a protocol has added what others wrote
        to it may it be too long; then its middle is left out.
        """
        if not actions:
            opening = self.opening(observations[0])
            if len(opening) > self.max_prompt_tokens:
                head = self.max_prompt_tokens // 2
                opening = [*opening[:head], *opening[head - self.max_prompt_tokens :]]
            return opening
        opening = list(actions[0].prompt_ids)
        latest = self.bridge(observations[-1], actions[-1])
        chained = [*actions[-1].prompt_ids, *actions[-1].token_ids, *latest]
        if len(chained) <= self.max_prompt_tokens:
            return chained
        kept: list[list[int]] = []
        room = self.max_prompt_tokens - len(opening)
        for action, observation in zip(reversed(actions), reversed(observations), strict=False):
            block = [*action.token_ids, *self.bridge(observation, action)]
            if len(block) > room:
                break
            kept.insert(0, block)
            room -= len(block)
        if not kept:  # not even the newest turn fits: the end of what the agent was told last
            kept = [latest[-room:] if room > 0 else []]
        return [*opening, *(token for block in kept for token in block)]

    def opening(self, observation: str) -> list[int]:
        """Tokens of the first observation, up to where the agent begins to write."""
        if not self.use_template:
            return self.tokenizer(self._system_text() + observation + "\n").input_ids
        messages = [*self.system, {"role": "user", "content": self.preface + observation}]
        return self._encode(self._render(messages, add_generation_prompt=True))

    def bridge(self, observation: str, action: Action) -> list[int]:
        """Tokens between the end of `action` and where the agent begins to write again."""
        if not self.use_template:
            return self._encode("\n" + observation + "\n")
        text = self._render(
            [
                *self.system,
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": _ANSWER},
                {"role": "user", "content": observation},
            ],
            add_generation_prompt=True,
        )
        # the observation itself may contain anything, so the first mark is the one that was put there
        ids = self._encode(text.partition(_ANSWER)[2])
        ended = bool(action.token_ids) and not action.truncated
        return ids[1:] if ended and ids and ids[0] == action.token_ids[-1] else ids

    def check_fits(self, agent_id: str, task_id: str, observation: str) -> None:
        """Refuse a first observation that leaves no room for a response."""
        size = len(self.opening(observation))
        if size > self.max_prompt_tokens:
            raise ConfigurationError(
                f"task {task_id!r}: the first prompt of agent {agent_id!r} has {size} tokens, but its context leaves "
                f"{self.max_prompt_tokens} beside max_new_tokens; lower max_new_tokens, shorten the task or choose a "
                "model with a longer context."
            )

    def _shows_system(self, system_prompt: str) -> bool:
        """Whether the chat template accepts system messages, as Gemma's does not, and shows them."""
        try:
            text = self._render([*self.system, {"role": "user", "content": "?"}], add_generation_prompt=True)
        except TemplateError:
            return False
        return system_prompt.strip() in text

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self.template_arguments
        )

    def _encode(self, text: str) -> list[int]:
        return list(_tokens(self.tokenizer, text))

    def _system_text(self) -> str:
        return self.system[0]["content"] + "\n" if self.system else ""


@lru_cache(maxsize=4096)
def _tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Tokens of `text` as it stands; what is said in one turn is often said in the next and in other episodes."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
