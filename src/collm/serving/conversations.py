"""Chat messages become the prompt that training would have written, token by token."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from collm.models.policy import Policy, make_dialogue
from collm.trajectory import Action

_REMEMBERED = 4096  # answers, each of some hundred tokens

Chat = Sequence[Mapping[str, str]]
"""Messages with `role` and `content`."""


class Conversations:
    """Prompts of chats with one agent.

    The text of an answer does not always say which tokens were sampled, so recent answers are remembered with theirs;
    others are encoded again.

    Args:
        policy: The agent.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self._written: OrderedDict[str, Action] = OrderedDict()

    def prompt(self, messages: Chat) -> list[int]:
        """Tokens of a chat, up to where the agent begins to write.

        Args:
            messages: Those of the user and of the agent in turns, beginning and ending with the user; before them there
                may be a system message, in place of the agent's own.

        Raises:
            ValueError: They are in another order.
        """
        dialogue, rest = self.policy.dialogue, list(messages)
        if rest and rest[0]["role"] == "system":
            system = rest.pop(0)["content"]
            if system != (self.policy.spec.system_prompt or ""):
                dialogue = make_dialogue(replace(self.policy.spec, system_prompt=system))
        roles = [message["role"] for message in rest]
        if len(rest) % 2 == 0 or roles != ["user", "assistant"] * (len(rest) // 2) + ["user"]:
            raise ValueError("messages must be of the user and the assistant in turns, the first and last of the user")
        observations = [message["content"] for message in rest[::2]]
        actions: list[Action] = []
        for turn, message in enumerate(rest[1::2]):
            known = self._written.get(_key([*messages[: len(messages) - len(rest) + 2 * turn + 1], message]))
            if known is None:
                prompt = dialogue.prompt(observations[: turn + 1], actions)
                known = self.policy.encode_action(message["content"], prompt)
            actions.append(known)
        return dialogue.prompt(observations, actions)

    def remember(self, messages: Chat, action: Action) -> None:
        """Keep the answer to a chat, so that a chat which goes on from it has the same tokens."""
        self._written[_key([*messages, {"role": "assistant", "content": action.text}])] = action
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)


def _key(messages: Chat) -> str:
    said = [[message["role"], message["content"]] for message in messages]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
