"""The base class of the building games: options, the turn, the reward of a turn, and feedback.

Three options define a game. `persistent`: whether a turn begins with the blocks of the previous turn or with an empty
world. `reward_density`: whether every turn has a reward or only the last one. `reward`: the formula of the score of a
world. Scores are pure functions of a task and a world; this file computes the reward of a turn from them:

    dense,  not persistent   the score of the turn
    dense,  persistent       the improvement of the score in this turn (in the first turn, the score), so that the
                             undiscounted return is the final score
    sparse                   the score of the world at the last turn, and 0 before
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from collm.environments.base import MAX_PICTURE, Environment, Step, Turns
from collm.environments.building.arguments import check_blocks
from collm.environments.building.blocks import (
    REASONS,
    Cell,
    Reading,
    World,
    build,
    command_shares,
    from_plain,
    plain,
)
from collm.environments.building.state import BuildState, Score, builders_of
from collm.environments.canvas import Canvas
from collm.environments.pay import Density, paid
from collm.runtime.checks import Count, Finite, checked
from collm.trajectory import Task, Trajectory

Feedback = Literal["score", "position", "perfect", "none"]

# Number of rejected lines in feedback; further ones are only counted, to keep feedback short.
MAX_TOLD_LINES = 3
MAX_TOLD_CHARACTERS = 60


class BuildingGame(Environment):
    """Base class of the building games. A game adds tasks, rules, a score, observations and an image.

    A dense reward is the score of the turn. In a persistent game it is the improvement of the score in this turn (in
    the first turn, the score), so that the return is the final score. A sparse reward is the score of the world at the
    last turn, and 0 before. Subclasses fill `splits` with their tasks, and then call `set_reward_bounds`.

    Args:
        blocks: Kinds of block of each agent, by agent id; the number of entries is the number of agents.
        horizon: Largest number of turns of an episode.
        persistent: Keep everything from turn to turn: blocks (`air` removes one), block limits and dead spiders. False,
            as in the paper: each turn begins with an empty world, full block limits and living spiders.
        reward: Form of the score, "paper" or "released".
        reward_density: "dense" gives a reward at every turn, "sparse" at the last one only.
        termination_score: End the episode when the score after a turn is greater than this; null for never. If each
            turn is rewarded with its score, an early end loses the rewards of the turns left.
        max_commands: Number of commands of all agents together per turn, divided equally; lines beyond an agent's
            share are rejected.
        prompt: "full" explains the game, for instruction-tuned models; "compact" shows only what differs between tasks,
            for small models that start from random weights.
        feedback: What agents are told after a turn.
    """

    empty_palettes: ClassVar[bool] = False
    """Whether an agent without listed blocks has all kinds."""

    @checked
    def __init__(
        self,
        *,
        blocks: dict[str, list[str]],
        horizon: Turns = 4,
        persistent: bool = False,
        reward: Literal["paper", "released"] = "paper",
        reward_density: Density = "dense",
        termination_score: Finite | None = None,
        max_commands: Count = 300,
        prompt: Literal["full", "compact"] = "full",
        feedback: Feedback = "position",
    ) -> None:
        self.blocks = check_blocks(blocks, self.empty_palettes)
        self.agent_ids = tuple(self.blocks)
        self.horizon, self.persistent, self.termination_score = horizon, persistent, termination_score
        self.reward, self.reward_density = reward, reward_density
        self.max_commands, self.prompt, self.feedback = max_commands, prompt, feedback
        shares = command_shares(max_commands, len(self.agent_ids))
        self.command_shares = dict(zip(self.agent_ids, shares, strict=True))
        self.best_score = 0.0

    def set_reward_bounds(self, lowest: float, highest: float) -> None:
        """Set the bounds of the reward of a turn from those of the score."""
        self.best_score = highest
        if self.reward_density == "sparse":
            self.min_reward, self.max_reward = min(0.0, lowest), max(0.0, highest)
        elif self.persistent and self.horizon > 1:
            # One turn can change the best world into the worst one, or the reverse.
            self.min_reward, self.max_reward = min(lowest, lowest - highest), max(highest, highest - lowest)
        else:
            self.min_reward, self.max_reward = lowest, highest

    @abstractmethod
    def begin(self, task: Task, rng: random.Random) -> BuildState:
        """The state before the first turn."""

    @abstractmethod
    def read(self, state: BuildState, agent_id: str, text: str) -> Reading:
        """Parse the response `text` of `agent_id`."""

    @abstractmethod
    def score(self, state: BuildState, world: World) -> Score:
        """The score of `world`; of `state`, it may use `task`, `attacks` and `killed` only."""

    @abstractmethod
    def first_observation(self, state: BuildState, agent_id: str) -> str:
        """The first observation of `agent_id`."""

    @abstractmethod
    def next_observation(
        self, state: BuildState, agent_id: str, world: World, score: Score, rejected: Sequence[Sequence[str]]
    ) -> str:
        """The observation of `agent_id` after a turn that ended with `world`; `state` is the state after it."""

    @abstractmethod
    def build_features(self, state: BuildState, score: Score) -> dict[str, float]:
        """Numeric features of the build in `state` and of the work left; `score` is its score."""

    @abstractmethod
    def build_text(self, state: BuildState, score: Score) -> str:
        """A short text about the build in `state` and the work left; `score` is its score."""

    def last_score(self, state: BuildState) -> Score:
        """The score of the build after the last turn, in which the spiders may have been killed."""
        return self.score(replace(state, killed=state.killed_last), state.built)

    def state_features(self, state: BuildState) -> dict[str, float]:
        """Numeric features of the build after the last turn, and its score."""
        score = self.last_score(state)
        return {**self.build_features(state, score), "score": score.total}

    def state_text(self, state: BuildState) -> str:
        """The build after the last turn compared with the target, and its score."""
        score = self.last_score(state)
        return f"{self.build_text(state, score)}\nscore {score.total:.2f} of {self.best_score:.2f}"

    def progress(self, state: BuildState) -> float | None:
        """Score of the current build divided by the best possible one, if rewards are sparse.

        None if they are dense: there the last reward tells it, and critics read that.
        """
        if self.reward_density == "dense":
            return None
        return self.last_score(state).total / self.best_score

    def reset(self, task: Task, rng: random.Random) -> tuple[BuildState, dict[str, str]]:
        """Begin an episode."""
        state = self.begin(task, rng)
        return state, {agent_id: self.first_observation(state, agent_id) for agent_id in self.agent_ids}

    def step(self, state: BuildState, joint_action: Mapping[str, str]) -> Step:
        """Parse the responses, apply the commands, and compute score and reward."""
        readings = {agent_id: self.read(state, agent_id, joint_action[agent_id]) for agent_id in self.agent_ids}
        commands = [command for reading in readings.values() for command in reading.accepted]
        world = build(state.world, commands)
        killed = state.killed or any(command.verb == "kill" for command in commands)
        after = replace(
            state,
            turn=state.turn + 1,
            built=world,
            builders=builders_of(state.builders if self.persistent else {}, readings.values(), world),
            killed=killed,
            killed_last=killed,
        )
        score = self.score(after, world)
        baseline = state.terms if self.persistent else {}
        terms = {name: value - baseline.get(name, 0.0) for name, value in score.terms.items()}
        terminated = self.termination_score is not None and score.total > self.termination_score
        over = terminated or after.turn >= self.horizon
        reward = paid(self.reward_density, sum(terms.values()), score.total, over)
        if self.persistent:
            used = {
                name: Counter(state.used.get(name, {})) + Counter(reading.used) for name, reading in readings.items()
            }
            after = replace(after, world=world, terms=score.terms, used=used)
        else:
            after = replace(after, killed=False)
        rejected = {agent_id: [list(entry) for entry in reading.rejected] for agent_id, reading in readings.items()}
        observations = {}
        if not over:
            observations = {
                agent_id: self.next_observation(after, agent_id, world, score, rejected[agent_id])
                for agent_id in self.agent_ids
            }
        info = {
            "rejected": rejected,
            "accepted": {agent_id: len(reading.accepted) for agent_id, reading in readings.items()},
            "score": score.total,
            "counts": score.counts,
            "world": plain(world),
            "builders": [after.builders[cell] for cell in sorted(world)],
        }
        return Step(after, observations, reward, terms, terminated, info)

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Score of the last world, absolute and in percent of the best one, and the share of rejected lines."""
        score = float(trajectory.turns[-1].info["score"]) if trajectory.turns else 0.0
        rejected = sum(len(lines) for turn in trajectory.turns for lines in turn.info["rejected"].values())
        accepted = sum(sum(turn.info["accepted"].values()) for turn in trajectory.turns)
        return {
            "score": score,
            "score_percent": 100.0 * score / self.best_score,
            "rejected_rate": rejected / (rejected + accepted) if rejected + accepted else 0.0,
        }

    def last_world(self, trajectory: Trajectory) -> World:
        """The world at the end of the episode."""
        return from_plain(trajectory.turns[-1].info["world"]) if trajectory.turns else {}

    @abstractmethod
    def drawing(self, task: Task, world: World, builders: Mapping[Cell, int]) -> Canvas:
        """The build over the target of `task`; see `draw_builds`."""

    def render(self, trajectory: Trajectory) -> np.ndarray:
        """The last build over its target."""
        world = self.last_world(trajectory)
        last = trajectory.turns[-1].info.get("builders", []) if trajectory.turns else []
        return self.drawing(trajectory.task, world, dict(zip(sorted(world), last, strict=False))).pixels()

    def render_turn(self, state: BuildState) -> str | None:
        """The build after the last turn over its target, as SVG; None if it is too large for a transcript."""
        picture = self.drawing(state.task, state.built, state.builders).svg()
        return picture if len(picture) <= MAX_PICTURE else None

    def position(self, agent_id: str) -> str:
        """Number of the agent and of all agents, as text."""
        return f"{self.agent_ids.index(agent_id) + 1} of {len(self.agent_ids)}"

    def team_rules(self) -> list[str]:
        """Instructions about the other agents; empty for a single agent."""
        if len(self.agent_ids) == 1:
            return []
        return [
            "- The other builders do the rest. They answer at the same time; you do not see what they write, nor they "
            "what you write.",
            "- Commands are carried out builder by builder. Where two fill the same cell, the block of the later "
            "builder stays.",
        ]

    def persistence_rule(self) -> str:
        """A sentence about what persists between turns, for instructions and feedback."""
        if self.horizon == 1:
            return "You answer once."
        if self.persistent:
            return f"There are {self.horizon} turns. What has been built stays from turn to turn."
        return (
            f"There are {self.horizon} turns. Each of them begins with an empty world: nothing stays from turn to turn."
        )

    def compact_header(self, state: BuildState, score: Score, rejected: Sequence[Sequence[str]]) -> str:
        """First line of compact feedback."""
        header = f"turn {state.turn + 1} of {self.horizon}"
        if self.feedback == "none":
            return header
        if self.feedback == "score":
            return f"{header}: score {score.total:.2f}, rejected {len(rejected)}"
        return f"{header}: rejected {len(rejected)}"

    def turn_report(self, state: BuildState, score: Score, rejected: Sequence[Sequence[str]]) -> list[str]:
        """Lines of full feedback that do not depend on the game: the turn, its score, rejected lines."""
        lines = [f"Turn {state.turn} of {self.horizon} is over."]
        if self.feedback == "none":
            return lines
        lines.append(f"Score of the team's build: {score.total:.2f}; the best possible is {self.best_score:.2f}.")
        if rejected:
            lines.append(f"{len(rejected)} of your lines had no effect:")
            for line, reason in rejected[:MAX_TOLD_LINES]:
                shown = line if len(line) <= MAX_TOLD_CHARACTERS else line[:MAX_TOLD_CHARACTERS] + "..."
                shown = shown.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text to show
                lines.append(f"- {shown}  ({REASONS[reason]})")
            if len(rejected) > MAX_TOLD_LINES:
                lines.append(f"- and {len(rejected) - MAX_TOLD_LINES} more")
        return lines
