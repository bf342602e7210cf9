"""What the building games share: options, the turn, when the reward is paid, and how feedback is put together.

Three choices make a game. `persistent`: does a turn begin with the blocks of the turn before, or with an empty world?
`reward_density`: is every turn paid, or the last one alone? `reward`: which formula scores a world? Scores are
pure functions of a task and a world; this file only decides what a turn pays:

    dense,  not persistent   the score of the turn
    dense,  persistent       how much the turn improved the score (first turn: the score itself), so that the
                             undiscounted return is the final score
    sparse, either           0, and on the last turn of the episode the score of its world
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from collm.environments.base import Environment, Step
from collm.environments.building.arguments import check_blocks, check_choice, check_count, check_flag, check_threshold
from collm.environments.building.blocks import (
    REASONS,
    Reading,
    World,
    build,
    command_shares,
    from_plain,
    plain,
)
from collm.environments.pay import DENSITIES, paid
from collm.trajectory import Task, Trajectory

# Rejected lines told to an agent in full; the others are only counted, so that feedback stays short.
MAX_TOLD_LINES = 3
MAX_TOLD_CHARACTERS = 60


@dataclass(frozen=True)
class Score:
    """How good a world is.

    Args:
        terms: Weighted terms; their sum is the score.
        counts: Whole numbers behind the terms.
    """

    terms: dict[str, float]
    counts: dict[str, int]

    @property
    def total(self) -> float:
        """The score."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class BuildState:
    """Where an episode stands.

    Args:
        task: What is built.
        turn: Turns played.
        world: The blocks the next turn begins with; empty unless the game is persistent.
        terms: Terms of the score that the next improvement is measured from.
        attacks: Damage of each spider, where the game has spiders.
        killed: Whether the spiders are dead, which only a persistent game carries over.
        used: Cells painted so far by agent and block, which only a persistent game carries over.
    """

    task: Task
    turn: int = 0
    world: World = field(default_factory=dict)
    terms: Mapping[str, float] = field(default_factory=dict)
    attacks: tuple[int, ...] = ()
    killed: bool = False
    used: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class BuildingGame(Environment):
    """Base of the building games. A game adds tasks, rules, a score, what agents are shown, and a picture.

    Subclasses document the arguments; they call `set_reward_bounds` when their tasks are known.
    """

    feedback_modes = ("score", "position", "perfect", "none")

    def __init__(
        self,
        *,
        blocks: Mapping[str, Sequence[str]],
        horizon: int,
        persistent: bool,
        reward: str,
        reward_density: str,
        termination_score: float | None,
        max_commands: int,
        prompt: str,
        feedback: str,
        empty_palettes: bool = False,
    ) -> None:
        self.blocks = check_blocks(blocks, empty_palettes)
        self.agent_ids = tuple(self.blocks)
        self.horizon = check_count("horizon", horizon, 1)
        self.persistent = check_flag("persistent", persistent)
        self.reward = check_choice("reward", reward, ("paper", "released"))
        self.reward_density = check_choice("reward_density", reward_density, DENSITIES)
        self.termination_score = check_threshold("termination_score", termination_score)
        self.max_commands = check_count("max_commands", max_commands, 1)
        self.prompt = check_choice("prompt", prompt, ("full", "compact"))
        self.feedback = check_choice("feedback", feedback, self.feedback_modes)
        shares = command_shares(self.max_commands, len(self.agent_ids))
        self.command_shares = dict(zip(self.agent_ids, shares, strict=True))
        self.best_score = 0.0

    def set_reward_bounds(self, lowest: float, highest: float) -> None:
        """Derive the bounds of one turn's reward from those of the score."""
        self.best_score = highest
        if self.reward_density == "sparse":
            self.min_reward, self.max_reward = min(0.0, lowest), max(0.0, highest)
        elif self.persistent and self.horizon > 1:
            # A turn may tear down the best world, or turn the worst one into the best.
            self.min_reward, self.max_reward = min(lowest, lowest - highest), max(highest, highest - lowest)
        else:
            self.min_reward, self.max_reward = lowest, highest

    @abstractmethod
    def begin(self, task: Task, rng: random.Random) -> BuildState:
        """The state before the first turn."""

    @abstractmethod
    def read(self, state: BuildState, agent_id: str, text: str) -> Reading:
        """What `agent_id` may do with the response `text`."""

    @abstractmethod
    def score(self, state: BuildState, world: World) -> Score:
        """The score of `world`; of `state` only what outlasts the turn may count (task, attacks, killed)."""

    @abstractmethod
    def first_observation(self, state: BuildState, agent_id: str) -> str:
        """What `agent_id` is shown before the first turn."""

    @abstractmethod
    def later_observation(
        self, state: BuildState, agent_id: str, world: World, score: Score, rejected: Sequence[Sequence[str]]
    ) -> str:
        """What `agent_id` is shown after a turn that left `world`; `state` is the one the next turn begins with."""

    def reset(self, task: Task, rng: random.Random) -> tuple[BuildState, dict[str, str]]:
        """Begin an episode."""
        state = self.begin(task, rng)
        return state, {agent_id: self.first_observation(state, agent_id) for agent_id in self.agent_ids}

    def step(self, state: BuildState, joint_action: Mapping[str, str]) -> Step:
        """Read, build, score and pay one turn."""
        readings = {agent_id: self.read(state, agent_id, joint_action[agent_id]) for agent_id in self.agent_ids}
        commands = [command for reading in readings.values() for command in reading.accepted]
        world = build(state.world, commands)
        after = replace(
            state,
            turn=state.turn + 1,
            killed=state.killed or any(command.verb == "kill" for command in commands),
        )
        score = self.score(after, world)
        baseline = state.terms if self.persistent else {}
        terms = {name: value - baseline.get(name, 0.0) for name, value in score.terms.items()}
        terminated = self.termination_score is not None and score.total > self.termination_score
        over = terminated or after.turn >= self.horizon
        reward = paid(self.reward_density, sum(terms.values()), score.total, over)
        if self.persistent:
            used = {agent_id: _add(state.used.get(agent_id, {}), readings[agent_id].used) for agent_id in readings}
            after = replace(after, world=world, terms=score.terms, used=used)
        else:
            after = replace(after, killed=False)
        rejected = {agent_id: [list(entry) for entry in reading.rejected] for agent_id, reading in readings.items()}
        observations = {}
        if not over:
            observations = {
                agent_id: self.later_observation(after, agent_id, world, score, rejected[agent_id])
                for agent_id in self.agent_ids
            }
        info = {
            "rejected": rejected,
            "accepted": {agent_id: len(reading.accepted) for agent_id, reading in readings.items()},
            "score": score.total,
            "counts": score.counts,
            "world": plain(world),
        }
        return Step(after, observations, reward, terms, terminated, info)

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Score of the last world, in points and as a share of the best one, and how many lines were rejected."""
        score = float(trajectory.turns[-1].info["score"]) if trajectory.turns else 0.0
        rejected = sum(len(lines) for turn in trajectory.turns for lines in turn.info["rejected"].values())
        accepted = sum(sum(turn.info["accepted"].values()) for turn in trajectory.turns)
        return {
            "score": score,
            "score_percent": 100.0 * score / self.best_score,
            "rejected_rate": rejected / (rejected + accepted) if rejected + accepted else 0.0,
        }

    def last_world(self, trajectory: Trajectory) -> World:
        """What stood when the episode ended."""
        return from_plain(trajectory.turns[-1].info["world"]) if trajectory.turns else {}

    def position(self, agent_id: str) -> str:
        """Which agent of how many, in words."""
        return f"{self.agent_ids.index(agent_id) + 1} of {len(self.agent_ids)}"

    def team_rules(self) -> list[str]:
        """What instructions say about the other agents; nothing to an agent that plays alone."""
        if len(self.agent_ids) == 1:
            return []
        return [
            "- The other builders do the rest. They answer at the same time; you do not see what they write, nor they "
            "what you write.",
            "- Commands are carried out builder by builder. Where two fill the same cell, the block of the later "
            "builder stays.",
        ]

    def persistence_rule(self) -> str:
        """How the turns hang together; instructions and feedback both say it with this sentence."""
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
                lines.append(f"- {shown}  ({REASONS[reason]})")
            if len(rejected) > MAX_TOLD_LINES:
                lines.append(f"- and {len(rejected) - MAX_TOLD_LINES} more")
        return lines


def _add(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {block: first.get(block, 0) + second.get(block, 0) for block in {**first, **second}}
