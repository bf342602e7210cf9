"""Reward and feedback functions: how they are called, and what they return."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from collm.environments.calls import Calls, load_function
from collm.environments.templates import is_conversation
from collm.errors import ConfigurationError, TrainingError
from collm.runtime.checks import shown
from collm.trajectory import Task

NOT_PASSED = ("prompt", "completion", "completion_ids")  # columns that TRL does not pass on either


@dataclass(frozen=True)
class RewardState:
    """State of an episode: its task, and the responses, reward and terms of each turn so far."""

    task: Task
    history: tuple[dict[str, str], ...] = ()
    rewards: tuple[float, ...] = ()
    terms: Mapping[str, float] = field(default_factory=dict)

    def after(self, texts: dict[str, str], score: Score) -> RewardState:
        """The state after a turn with the responses `texts`."""
        return RewardState(self.task, (*self.history, texts), (*self.rewards, score.reward), score.terms)


@dataclass(frozen=True)
class Score:
    """What a reward function returned, parsed."""

    reward: float
    terms: dict[str, float]
    metrics: dict[str, float]


def read_score(result: Any) -> Score | str:
    """The score in what a reward function returned, or a description of what is wrong with it."""
    terms, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    parts = terms if isinstance(terms, Mapping) else {"": terms}
    for kind, numbers in (("term", parts), ("metric", metrics)):
        if not isinstance(numbers, Mapping):
            return f"returned {shown(numbers)} as metrics; return a dict of numbers"
        for name, value in numbers.items():
            if not isinstance(value, Real) or not math.isfinite(value):
                what = (
                    f"the {kind} {name!r}: {shown(value)}"
                    if isinstance(terms, Mapping) or kind == "metric"
                    else shown(value)
                )
                return f"returned {what}, which is no finite number"
    named = {str(name): float(value) for name, value in parts.items()}
    measured = {str(name): float(value) for name, value in metrics.items()}
    return Score(sum(named.values()), named if isinstance(terms, Mapping) else {}, measured)


class UserFunction:
    """A reward or feedback function with the form of its arguments.

    Args:
        setting: Name of the setting that names it.
        path: Its import path.
        seconds: Time limit of one call.
        max_concurrent: Number of calls at the same time, if it is asynchronous.
        columns: Names of the fields of all rows, for functions of the TRL form; a row without one has None there.
    """

    def __init__(
        self, setting: str, path: str, seconds: float, max_concurrent: int, columns: Sequence[str] = ()
    ) -> None:
        self.setting = setting
        self.path = path
        self.columns = [name for name in columns if name not in NOT_PASSED]
        function = load_function(setting, path)
        try:
            self.signature = inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{setting} is {path!r}, whose arguments are unknown ({error}); wrap it."
            ) from error
        self.is_batched = "completions" in self.signature.parameters
        self.wants_history = "history" in self.signature.parameters and not self.is_batched
        self.calls = Calls(function, seconds, max_concurrent)

    def __str__(self) -> str:
        return f"the {self.setting} function {self.path}"

    def check(self, agent_ids: Sequence[str], task: Task) -> None:
        """Raise `ConfigurationError` unless the function can be called for a row like `task` by these agents."""
        if self.is_batched and len(agent_ids) != 1:
            raise ConfigurationError(
                f"{self} has a parameter `completions`, the form of TRL, which is for one agent, but there are "
                f"{list(agent_ids)}; write it as function(fields, texts)."
            )
        state = RewardState(task)
        texts = dict.fromkeys(agent_ids, "")
        ((positional, by_name),) = self.arguments([state], [texts], lambda task: "")
        try:
            self.signature.bind(*positional, **by_name)
        except TypeError as error:
            expected = f"the columns {sorted(by_name)}" if self.is_batched else "the fields and {agent_id: text}"
            raise ConfigurationError(
                f"{self} cannot be called with {expected}: {error}; change its parameters"
                f"{' or the data' if self.is_batched else ''}."
            ) from error

    def arguments(
        self, states: Sequence[RewardState], texts: Sequence[dict[str, str]], prompt_of: Callable[[Task], str]
    ) -> list[tuple[tuple, dict[str, Any]]]:
        """Positional and named arguments of each call; functions get copies, which they may change."""
        rows = [copy.deepcopy(dict(state.task.data)) for state in states]
        if not self.is_batched:
            named = [
                {"history": [dict(turn) for turn in state.history]} if self.wants_history else {} for state in states
            ]
            return [((row, dict(text)), names) for row, text, names in zip(rows, texts, named, strict=True)]
        prompts = [row.get("prompt", prompt_of(state.task)) for row, state in zip(rows, states, strict=True)]
        (agent_id,) = texts[0]
        completions = [
            [{"role": "assistant", "content": text[agent_id]}] if is_conversation(prompt) else text[agent_id]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        columns = {name: [row.get(name) for row in rows] for name in self.columns}
        return [((), {"prompts": prompts, "completions": completions, **columns})]

    def results(
        self, states: Sequence[RewardState], texts: Sequence[dict[str, str]], prompt_of: Callable[[Task], str]
    ) -> list[Any]:
        """What the function returned for each episode, or an exception in its place."""
        found = self.calls.run(self.arguments(states, texts, prompt_of))
        if not self.is_batched:
            return found
        (answer,) = found
        if isinstance(answer, BaseException):
            return [answer] * len(states)
        answer = answer.tolist() if hasattr(answer, "tolist") else answer
        if not isinstance(answer, Sequence) or isinstance(answer, str) or len(answer) != len(states):
            raise TrainingError(
                f"{self} returned {shown(answer)} for {len(states)} completions; return a list of one number for each."
            )
        return list(answer)
