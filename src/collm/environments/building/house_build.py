"""HouseBuild: several agents build a house from a layered blueprint while spiders attack them.

Agents answer at the same time with cuboid fills, each with a limited number of blocks, and share one reward. All see
the blueprint, so they must learn who builds what. The team loses health unless an agent kills the spiders.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from collm.environments.base import Tasks
from collm.environments.building.arguments import check_numbers
from collm.environments.building.blocks import Cell, Reading, Rules, World, iou, read_commands
from collm.environments.building.blueprints import Blueprint
from collm.environments.building.game import BuildingGame, Feedback
from collm.environments.building.house_rules import (
    DEMONSTRATION_COVERAGE,
    block_limits,
    cell_text,
    compare,
    corrections,
    cuboid_text,
    divide_fills,
    house_counts,
    house_features,
    layers_text,
    random_fills,
    score_house,
)
from collm.environments.building.house_tasks import house_tasks
from collm.environments.building.picture import draw_builds
from collm.environments.building.random_houses import LEVELS
from collm.environments.building.state import BuildState, Score
from collm.environments.canvas import Canvas
from collm.errors import ConfigurationError
from collm.runtime.checks import Count, CountOrZero, Range, checked
from collm.trajectory import Task, Trajectory

DEFAULT_BLOCKS: dict[str, list[str]] = {"builder_1": [], "builder_2": []}


class HouseBuild(BuildingGame):
    """Build houses from blueprints, each agent with a limited number of blocks, under attack by spiders.

    Score of a world, form "paper": 2 * covered cells / solid cells of the house - 1.5 * blocks at empty cells of the
    house / solid cells of the house - 0.2 * min(1, damage / health) while the spiders live. Kinds have no effect. Form
    "released", the rule of the authors' released code: cells of the box equal to the blueprint, empty ones too / all
    cells of the box - 0.1 * min(1, damage / health) while the spiders live, the latter for two or more agents only.

    The score is at most 2 in "paper" and 1 in "released", and at least -0.2 - 1.5 * the largest ratio of empty to solid
    cells in "paper" and -0.1 in "released" (without the penalty if there are no spiders). In a persistent game with
    dense rewards, `max_reward` and `min_reward` are plus and minus the difference of the two.

    Args:
        path: JSON file with blueprints in the format of the authors' released data, instead of random houses.
        num_eval: Number of held-out houses: the last ones of the file, or additional random ones.
        num_houses: Number of random training houses.
        size: Sides x, y (height) and z of random houses in cells, each at least 3.
        level: Random houses have: 1 floor, walls, flat roof; 2 also posts and a door; 3 also windows, pitched roofs.
        seed: Seed of the random houses.
        blocks: Kinds of block of each agent, by agent id; the number of entries is the number of agents. An empty list
            means all kinds of the blueprint. Random houses consist of the listed kinds. Default: builder_1 and
            builder_2 with all kinds.
        limited_resources: Limit the number of cells that each agent can fill with each kind of block, to
            ceil(c / n) + floor(c / 2n) for c cells in the house and n agents with that kind. Removing a block does not
            return it. The limit is per turn, or per episode in a persistent game.
        num_spiders: Number of spiders in an episode; 0 for none.
        spider_damage: Smallest and largest damage of one spider, sampled in every episode.
        player_health: Damage at which the penalty is largest.
        max_commands: Number of commands of all agents together per turn, divided equally; lines beyond an agent's
            share are rejected.
        feedback: Feedback to agents after a turn: "none"; "score", score, damage and rejected lines; "position", also
            the build compared with the blueprint; "perfect", also the fills that would complete the house.
    """

    empty_palettes = True

    @checked
    def __init__(
        self,
        path: str | None = None,
        num_eval: Tasks = 2,
        num_houses: Tasks = 32,
        size: tuple[int, int, int] = (6, 7, 7),
        level: Annotated[int, Range(LEVELS[0], LEVELS[-1], whole=True)] = 3,
        seed: CountOrZero = 0,
        blocks: dict[str, list[str]] | None = None,
        limited_resources: bool = True,
        num_spiders: Annotated[int, Range(0, 1_000_000, whole=True)] = 3,
        spider_damage: tuple[int, int] = (1, 3),
        player_health: Count = 5,
        max_commands: Count = 600,
        feedback: Feedback = "score",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            blocks=DEFAULT_BLOCKS if blocks is None else blocks, max_commands=max_commands, feedback=feedback, **kwargs
        )
        self.limited_resources, self.num_spiders, self.player_health = limited_resources, num_spiders, player_health
        self.spider_damage = check_numbers("spider_damage", spider_damage, 2, 0)
        if self.spider_damage[0] > self.spider_damage[1]:
            raise ConfigurationError(f"spider_damage is {list(spider_damage)}; put the smaller number first.")
        self.splits = house_tasks(path, num_eval, num_houses, size, level, self.blocks, seed)
        houses = [Blueprint.of(task.data) for split in self.splits.values() for task in split]
        named = [*self.blocks.values(), *(house.kinds for house in houses)]
        self.kinds = tuple(dict.fromkeys(kind for kinds in named for kind in kinds))
        threatened = num_spiders > 0 and spider_damage[1] > 0
        if self.reward == "paper":
            largest = max((house.size - len(house.world)) / len(house.world) for house in houses)
            self.set_reward_bounds(-1.5 * largest - 0.2 * threatened, 2.0)
        else:
            self.set_reward_bounds(-0.1 * (threatened and len(self.agent_ids) > 1), 1.0)

    def _palettes(self, house: Blueprint) -> dict[str, tuple[str, ...]]:
        return {agent_id: palette or house.kinds for agent_id, palette in self.blocks.items()}

    def _blocks_left(self, state: BuildState, house: Blueprint) -> dict[str, dict[str, int]]:
        """Number of blocks left, by agent and kind; empty if they are unlimited."""
        if not self.limited_resources:
            return {}
        return {
            agent_id: {kind: limit - state.used.get(agent_id, {}).get(kind, 0) for kind, limit in limits.items()}
            for agent_id, limits in block_limits(house, self._palettes(house)).items()
        }

    def begin(self, task: Task, rng: random.Random) -> BuildState:
        """An empty box, and the spiders of the episode."""
        return BuildState(task, attacks=tuple(rng.randint(*self.spider_damage) for _ in range(self.num_spiders)))

    def read(self, state: BuildState, agent_id: str, text: str) -> Reading:
        """Accept `/fill` inside the box with blocks that the agent has left, and `/kill`."""
        house = Blueprint.of(state.task.data)
        limits = self._blocks_left(state, house).get(agent_id, {})
        share = self.command_shares[agent_id]
        return read_commands(text, Rules({"fill", "kill"}, self._palettes(house)[agent_id], house.box, share, limits))

    def score(self, state: BuildState, world: World) -> Score:
        """See `score_house`."""
        house, damage = Blueprint.of(state.task.data), sum(state.attacks)
        return score_house(house, world, damage, self.player_health, state.killed, len(self.agent_ids), self.reward)

    def first_observation(self, state: BuildState, agent_id: str) -> str:
        """The blueprint as cuboids, the blocks, the spiders and, with the prompt "full", the rules."""
        house = Blueprint.of(state.task.data)
        (low, high), team = house.box, len(self.agent_ids)
        supplies = self._supplies(state, house, agent_id)
        if self.prompt == "compact":
            lines = [f"agent {self.position(agent_id)}: {supplies}"]
            if state.attacks:
                lines.append(f"spiders {sum(state.attacks)} of {self.player_health}")
            return "\n".join([*lines, *(f"/fill {cuboid_text(fill)}" for fill in house.rectangles(house.world))])
        lines = [
            f"You are builder {self.position(agent_id)} in a team that builds a house out of blocks."
            if team > 1
            else "You build a house out of blocks.",
            "",
            "A cell is named x y z, where y is the height. The house stands in the box from "
            f"{cell_text(low)} to {cell_text(high)}.",
            "Its blueprint, layer by layer from the ground up. Each entry fills all cells between two corners with one "
            "block; cells that are not listed stay empty:",
            *layers_text(house),
            "",
            f"Your blocks{' and how many cells you can fill with each' if self.limited_resources else ''}: {supplies}.",
        ]
        if state.attacks:
            attacks = ", ".join(map(str, state.attacks))
            lines.append(
                f"Spiders attack with {attacks} damage, {sum(state.attacks)} in all; the team's health is "
                f"{self.player_health}. One line /kill from any builder stops them"
                + (" for good." if self.persistent else " for the turn.")
            )
        lines += [
            "",
            "Rules:",
            "- Answer with commands and nothing else, one on each line: /fill x1 y1 z1 x2 y2 z2 block"
            + (", or /kill" if state.attacks else ""),
            "- Both corners are filled as well. A single cell has the same corner twice. The block air empties cells.",
            "- Fill nothing that the blueprint leaves empty.",
            f"- At most {self.command_shares[agent_id]} commands count in one turn.",
        ]
        if self.limited_resources:
            lines.append(
                "- A fill larger than what you have left of its block is dropped whole: fill a part of it instead. "
                "Filling a cell twice costs twice."
            )
        return "\n".join([*lines, *self.team_rules(), f"- {self.persistence_rule()}"])

    def next_observation(
        self, state: BuildState, agent_id: str, world: World, score: Score, rejected: Sequence[Sequence[str]]
    ) -> str:
        """The result of the turn, as `feedback` allows, and instructions for the next one."""
        house = Blueprint.of(state.task.data)
        grid = compare(house, world) if self.feedback in {"position", "perfect"} else []
        advice = self._advice(state, house, agent_id) if self.feedback == "perfect" else []
        harm = 0 if score.counts["killed"] else score.counts["damage"]
        if self.prompt == "compact":
            header = self.compact_header(state, score, rejected)
            if harm and self.feedback != "none":
                header += f", spiders {harm}"
            return "\n".join([header, *grid, *advice])
        lines = self.turn_report(state, score, rejected)
        if state.attacks and self.feedback != "none":
            lines.append(
                f"Nobody stopped the spiders: {harm} damage." if harm else "The spiders were stopped: no damage."
            )
        if grid:
            lines += [
                "The build, layer by layer, each row after its z. '+' is right, '!' has the wrong block, '#' is "
                "missing, 'x' should be empty, '.' is empty:",
                *grid,
            ]
        if advice:
            lines += ["Commands that would serve you best next:", *advice]
        lines.append(self.persistence_rule())
        if self.persistent:
            lines.append(
                "Write only what is to change: fill what is missing or wrong, empty with air what should be empty."
            )
            if self.limited_resources:
                lines.append(f"You have left: {self._supplies(state, house, agent_id)}.")
        else:
            again = " The spiders are back." if state.attacks else ""
            again += " Your stock is full again." if self.limited_resources else ""
            lines.append(f"Write your whole share of the house again.{again}")
        return "\n".join([*lines, "Answer with commands only."])

    def build_features(self, state: BuildState, score: Score) -> dict[str, float]:
        """See `house_features`."""
        used = {name: state.used.get(name, {}) for name in self.agent_ids}
        return house_features(Blueprint.of(state.task.data), state.built, score.counts, used, self.kinds)

    def build_text(self, state: BuildState, score: Score) -> str:
        """The build compared with the blueprint, its counts, the spiders and what is left to build with."""
        house = Blueprint.of(state.task.data)
        counts = house_counts(score.counts, self.player_health, are_back=not self.persistent)
        lines = [*compare(house, state.built), *counts]
        if self.limited_resources:
            lines += [f"{name} has {self._supplies(state, house, name)}" for name in self.blocks]
        return "\n".join(lines)

    def _supplies(self, state: BuildState, house: Blueprint, agent_id: str) -> str:
        """The agent's kinds of block with the number left of each, as text; kinds with none left are omitted."""
        left = self._blocks_left(state, house).get(agent_id, {})
        palette = self._palettes(house)[agent_id]
        kinds = [f"{kind} {left[kind]}" if kind in left else kind for kind in palette if left.get(kind, 1) > 0]
        return ", ".join(kinds) or "none"

    def _advice(self, state: BuildState, house: Blueprint, agent_id: str) -> list[str]:
        """Commands of the agent that complete the house from the world at the beginning of the next turn."""
        fills = house.rectangles(corrections(house, state.world))
        shares = divide_fills(fills, self._palettes(house), self._blocks_left(state, house))
        lines = [f"/fill {cuboid_text(fill)}" for fill in shares[agent_id]]
        first = agent_id == self.agent_ids[0]
        return ["/kill", *lines] if first and state.attacks and not state.killed else lines

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Besides the score: IoU with and without kinds of block, coverage, redundancy, and health left in percent."""
        house, world = Blueprint.of(trajectory.task.data), self.last_world(trajectory)
        counts = trajectory.turns[-1].info["counts"] if trajectory.turns else {"damage": 0, "killed": 0}
        harm = 0.0 if counts["killed"] else min(1.0, counts["damage"] / self.player_health)
        covered = len(house.world.keys() & world.keys())
        exact = len(house.world.items() & world.items())
        return {
            **super().metrics(trajectory),
            "iou": iou(house.world, world),
            "iou_color": exact / len(house.world.keys() | world.keys()),
            "coverage": covered / len(house.world),
            "redundancy": (len(world) - covered) / len(house.world),
            "hp": 100.0 * (1.0 - harm),
        }

    def drawing(self, task: Task, world: World, builders: Mapping[Cell, int]) -> Canvas:
        """One panel per layer, from the ground up, seen from above."""
        house = Blueprint.of(task.data)
        layers = [(f"y {layer[0][0][1]}", layer[::-1]) for layer in house.layers]
        return draw_builds(layers, house.world, world, builders, self.agent_ids, self.reward == "released")

    def demonstrate(self, state: BuildState, rng: random.Random) -> dict[str, str]:
        """Each agent independently fills random missing cuboids, as its blocks allow, with random mistakes."""
        house = Blueprint.of(state.task.data)
        palettes, left = self._palettes(house), self._blocks_left(state, house)
        missing = house.rectangles(dict(house.world.items() - state.world.items()))
        cells = [cell for layer in house.layers for row in layer for cell in row]
        actions = {}
        for agent_id, palette in palettes.items():
            possible = [fill for fill in missing if fill.block in palette]
            fills = random_fills(possible, cells, left.get(agent_id, {}), rng)
            lines = [f"/fill {cuboid_text(fill)}" for fill in fills]
            if state.attacks and not state.killed and rng.random() < DEMONSTRATION_COVERAGE:
                lines.insert(0, "/kill")
            actions[agent_id] = "\n".join(lines)
        return actions
