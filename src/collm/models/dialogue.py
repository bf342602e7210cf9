"""Dialogues as prompts: how the history of an agent becomes the tokens its policy reads.

The prompt is the complete history h_i = (o_0, a_0, ..., o_t). Sampled tokens are kept as they were sampled and only the
text between them is added, so each prompt begins with the previous prompt and action. One forward pass can therefore
score an episode, and one key/value cache serve it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase as Tokenizer

from collm.errors import ConfigurationError
from collm.models.loading import control_tokens, encode_data, tokens_of
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
        control_tokens_in_data: Whether control tokens in an observation are control tokens in the prompt.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_prompt_tokens: int,
        chat_template: bool = True,
        template_arguments: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        control_tokens_in_data: bool = False,
    ):
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.use_template = chat_template and bool(tokenizer.chat_template)
        self.template_arguments = dict(template_arguments or {})
        self.control_tokens_in_data = control_tokens_in_data
        self.system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self.preface = ""
        if self.use_template and system_prompt and not self._shows_system(system_prompt):
            self.system, self.preface = [], f"{system_prompt}\n\n"

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        """Tokens of the history o_0, a_0, ..., o_t; the newest turns are kept where it does not fit.

        The first observation, which holds the instruction, is never dropped. It can be too long only if a sampler has
        added messages of other agents to it; then its middle is cut out.
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
        if not kept:  # not even the newest turn fits: keep the end of the last observation
            kept = [latest[-room:] if room > 0 else []]
        return [*opening, *(token for block in kept for token in block)]

    def opening(self, observation: str) -> list[int]:
        """Tokens of the first observation, up to where the agent begins to write."""
        observation, marks = self._marked(observation)
        if not self.use_template:
            text = self._system_text() + observation + "\n"
            return [*self._begin(), *self._encode(text, marks)]
        messages = [*self.system, {"role": "user", "content": self.preface + observation}]
        return self._encode(self._render(messages, add_generation_prompt=True), marks)

    def bridge(self, observation: str, action: Action) -> list[int]:
        """Tokens between the end of `action` and where the agent begins to write again."""
        observation, marks = self._marked(observation)
        if not self.use_template:
            return self._encode("\n" + observation + "\n", marks)
        text = self._render(
            [
                *self.system,
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": _ANSWER},
                {"role": "user", "content": observation},
            ],
            add_generation_prompt=True,
        )
        # the observation itself may contain the placeholder too, so the first one counts
        ids = self._encode(text.partition(_ANSWER)[2], marks)
        if action.truncated or not action.token_ids or action.token_ids[-1] not in ids:
            return ids
        # the agent's end token is the one with which the template ends its message, with or without spaces around it
        end = ids.index(action.token_ids[-1])
        return ids if cast(str, self.tokenizer.decode(ids[:end])).strip() else ids[end + 1 :]

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
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self.template_arguments
            )
        except TemplateSyntaxError as error:
            raise ConfigurationError(
                f"the chat template of {self.tokenizer.name_or_path!r} cannot be read: {error}; mend it, or set "
                "chat_template to false."
            ) from error
        return cast(str, text)

    def _marked(self, observation: str) -> tuple[str, dict[str, str]]:
        """`observation` with a placeholder for each control token in it, and the texts of the placeholders."""
        pattern = None if self.control_tokens_in_data else control_tokens(self.tokenizer)
        if pattern is None:
            return observation, {}
        fence = "\ue000"
        while fence in observation:
            fence += "\ue000"
        marks: dict[str, str] = {}  # placeholders by control token

        def mark(match: re.Match[str]) -> str:
            return marks.setdefault(match.group(), f"{fence}{len(marks)}\ue001")

        return pattern.sub(mark, observation), {name: text for text, name in marks.items()}

    def _encode(self, text: str, marks: Mapping[str, str]) -> list[int]:
        """Tokens of `text`, with the texts of placeholders as ordinary characters."""
        if not marks:
            return list(tokens_of(self.tokenizer, text))
        pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", text)
        encoded = (
            encode_data(self.tokenizer, marks[piece]) if piece in marks else tokens_of(self.tokenizer, piece)
            for piece in pieces
            if piece
        )
        return [token for ids in encoded for token in ids]

    def _begin(self) -> list[int]:
        """Tokens that the tokenizer puts in front of a text, such as a begin-of-sequence token."""
        text = "\n"
        plain = self._encode(text, {})
        ids = list(self.tokenizer(text).input_ids)
        starts = range(len(ids) - len(plain) + 1)
        return ids[: next((start for start in starts if ids[start : start + len(plain)] == plain), 0)]

    def _system_text(self) -> str:
        return self.system[0]["content"] + "\n" if self.system else ""
