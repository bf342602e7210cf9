"""The environment of the games on a grid, and what their prompts and pictures have in common."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from collm.environments.base import MAX_PICTURE, Environment, Step, check_tasks
from collm.environments.games.grid_rules import GridMap, GridRules, GridState, Walker
from collm.environments.games.svg import COLOURS, label, line, picture, square
from collm.environments.pay import paid
from collm.runtime.checks import Range
from collm.trajectory import Task, Trajectory

Communication = Literal["none", "facts", "text"]
Prompt = Literal["full", "compact"]
UpTo50 = Annotated[int, Range(1, 50, whole=True)]
UpTo100 = Annotated[int, Range(1, 100, whole=True)]
UpTo1000 = Annotated[int, Range(1, 1000, whole=True)]
MAX_TOLD_LINES = 3  # rejected lines that an agent is shown


class GridGame(Environment):
    """A deterministic game on a grid.

    Attributes:
        score: Name of a value in `info` that is a metric, as it is after the last turn.
        counted: Names of counts in `info` whose sums over an episode are metrics.
    """

    rules: GridRules
    reward: str
    prompt: str
    score: str
    counted: tuple[str, ...]

    def _set_maps(self, name: str, train: Sequence[GridMap], held_out: Sequence[GridMap]) -> None:
        """Make the tasks; those to train on are called `name` with a number."""
        self.splits = {
            "train": [Task(f"{name}_{index}", drawn.data) for index, drawn in enumerate(train)],
            "eval": [Task(f"held_out_{index}", drawn.data) for index, drawn in enumerate(held_out)],
        }
        check_tasks(type(self).__name__, self.splits["train"], self.splits["eval"])

    @abstractmethod
    def begin(self, data: Mapping[str, Any]) -> GridState:
        """The state before the first turn on the map of a task."""

    @abstractmethod
    def resolve(self, state: Any, texts: Sequence[str]) -> tuple[GridState, dict[str, float], dict[str, Any]]:
        """Play one turn; returns the next state, the terms of the reward, and counts for metrics."""

    @abstractmethod
    def outcome(self, state: Any) -> tuple[bool, dict[str, Any]]:
        """Whether the team has done everything, and what `info` says about the state."""

    @abstractmethod
    def observation(self, state: Any, index: int, before: Any) -> str:
        """What agent `index` is shown in `state`; `before` is the state of the turn before, None at the beginning."""

    def reset(self, task: Task, rng: random.Random) -> tuple[GridState, dict[str, str]]:
        """Begin an episode; the game is deterministic."""
        state = self.begin(task.data)
        return state, self._observations(state, None)

    def _observations(self, state: GridState, before: GridState | None) -> dict[str, str]:
        return {agent_id: self.observation(state, index, before) for index, agent_id in enumerate(self.agent_ids)}

    def step(self, state: GridState, joint_action: Mapping[str, str]) -> Step:
        """Play one turn by the rules of the game."""
        after, terms, counts = self.resolve(state, [joint_action[agent_id] for agent_id in self.agent_ids])
        solved, facts = self.outcome(after)
        over = solved or after.turn >= self.horizon
        rejected = {
            agent_id: [list(entry) for entry in agent.rejected]
            for agent_id, agent in zip(self.agent_ids, after.agents, strict=True)
        }
        info = {**counts, "success": solved, **facts, "rejected": rejected}
        reward = paid(self.reward, sum(terms.values()), after.total, over)
        return Step(after, {} if over else self._observations(after, state), reward, terms, solved, info)

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Success, the score, and per episode: lines that were rejected, and the counts of the game."""
        infos = [turn.info for turn in trajectory.turns]
        return {
            "success": float(infos[-1]["success"]),
            self.score: float(infos[-1][self.score]),
            "rejected": float(sum(len(entries) for info in infos for entries in info["rejected"].values())),
            **{name: float(sum(info[name] for info in infos)) for name in self.counted},
        }

    def draw(
        self, state: GridState, size: tuple[int, int], ground: Sequence[str], things: Sequence[str], opacity: float,
        caption: str,
    ) -> str | None:  # fmt: skip
        """A picture: `ground`, what each agent has seen, `things`, the agents' walks; and what they sent.

        None if it is too large for a transcript.
        """
        shapes, captions = list(ground), [f"turn {state.turn}, {caption}"]
        for agent, colour in zip(state.agents, COLOURS, strict=False):
            shapes += [square(cell, colour, opacity) for cell in sorted(agent.seen)]
        shapes += things
        for index, agent in enumerate(state.agents):
            shapes += [line(agent.way, COLOURS[index]), label(agent.position, str(index + 1), "#fff")]
            captions += [f"{self.agent_ids[index]} sends: {text}" for text in agent.sent]
        drawing = picture(*size, shapes, captions)
        return drawing if len(drawing) <= MAX_PICTURE else None


def turn_lines(rules: GridRules, turn: int, agent: Walker, reasons: Mapping[str, str]) -> list[str]:
    """The turn, where the agent stands, which of its commands had no effect and why, and messages to it."""
    x, y = agent.position
    lines = [f"Turn {turn + 1} of {rules.horizon}. You stand at {x} {y}."]
    for text, reason in agent.rejected[:MAX_TOLD_LINES]:
        lines.append(f"Without effect: {text}  ({reasons[reason]})")
    if len(agent.rejected) > MAX_TOLD_LINES:
        lines.append(f"Without effect as well: {len(agent.rejected) - MAX_TOLD_LINES} more lines.")
    return [*lines, *(f"{name} says: {text}" for name, text in agent.heard)]


def command_lines(rules: GridRules, commands: Sequence[str], tell: str, others: str) -> list[str]:
    """The list of commands: `go`, those of the game, and the one for messages, of which `tell` says what it does."""
    lines = [
        "",
        "Commands, one on each line:",
        f"- go x y: walk towards a cell, at most {rules.steps} steps. Once in a turn, before anything else.",
        *commands,
    ]
    if rules.communication == "facts":
        lines.append(f"- tell {tell} At most {rules.message_limit} in a turn; it arrives before the next one.")
    elif rules.communication == "text":
        lines.append(
            f"- say words: a message of at most {rules.max_characters} characters to {others}, once in a turn; it "
            "arrives before the next one."
        )
    else:
        lines.append("You cannot send messages.")
    return lines
