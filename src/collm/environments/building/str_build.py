"""StrBuild: several agents build a word out of blocks, each with different materials.

A word is drawn in a 5 x 5 font on a flat grid. The best build covers every cell of the word and no other cell, without
adjacent blocks of one texture: a checkerboard of the agents' materials. Agents answer at the same time, see neither
each other's answers nor blocks, and share one reward.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from collm.environments.base import Tasks, check_tasks
from collm.environments.building.blocks import Cell, Reading, Rules, World, iou, neighbours, read_commands
from collm.environments.building.game import BuildingGame, Feedback
from collm.environments.building.lettering import (
    Rows,
    area,
    bounding_box,
    choose_words,
    compare,
    draw_word,
    grid_cells,
    numbered,
    random_figures,
    targets,
)
from collm.environments.building.picture import draw_builds
from collm.environments.building.state import BuildState, Score
from collm.environments.building.str_rules import checkerboard, command, score_build
from collm.environments.canvas import Canvas
from collm.runtime.checks import CountOrZero, Range, checked
from collm.trajectory import Task, Trajectory

DEFAULT_BLOCKS = {"builder_1": ["oak_planks", "stone"], "builder_2": ["white_concrete", "obsidian"]}
MAX_SHAPES = 100_000

# Scripted demonstrations: the probability of filling a missing cell, and that of filling an empty cell in its place.
DEMONSTRATION_COVERAGE = 0.35
DEMONSTRATION_SLIPS = 0.2


class StrBuild(BuildingGame):
    """Build words out of blocks, every agent with different materials.

    Score of a world, form "paper": 2 * covered cells / target cells - 1.5 * blocks on the background / target cells
    - pairs of adjacent blocks with one texture / pairs of adjacent blocks. Form "released", the rule of the authors'
    released code: the second term is divided by the number of background cells instead, and 0.25 is subtracted for
    every agent whose kinds of block are not all present.

    The score is at most 2 (all targets covered, no other blocks, no adjacent equal textures) and at least that of a
    background filled with one material: -1 - 1.5 * the largest background / target of all words in "paper",
    -2.5 - 0.25 * number of agents in "released". These are `max_reward` and `min_reward`; in a persistent game with
    dense rewards, where a turn can change any score into any other, they are plus and minus the difference.

    Args:
        words: Training words. Default: 20 letters.
        eval_words: Held-out words, different from all training words. Default: those of the letters E, H, O, S, U, Y
            that are not in `words`.
        path: CSV file of words with the columns string,difficulty, instead of `words` and `eval_words`.
        num_eval: Number of held-out words with `path`: its last rows.
        num_shapes: Number of random connected 5 x 5 figures to add to the training words, each different from the
            others and from all letters. Intended for behaviour cloning.
        seed: Seed of these figures.
        spacing: Number of empty columns between two letters.
        blocks: Kinds of block of each agent, by agent id; the number of entries is the number of agents. Default:
            builder_1 with oak_planks and stone, builder_2 with white_concrete and obsidian.
        feedback: Feedback to agents after a turn: "position", the build compared with the target; "score", only the
            score; "perfect", also the best next commands of the agent; "none". All except "none" list the agent's
            rejected lines.
    """

    @checked
    def __init__(
        self,
        words: list[str] | None = None,
        eval_words: list[str] | None = None,
        path: str | None = None,
        num_eval: Tasks = 2,
        num_shapes: Annotated[int, Range(0, MAX_SHAPES, whole=True)] = 0,
        seed: CountOrZero = 0,
        spacing: Annotated[int, Range(0, 1_000_000, whole=True)] = 2,
        blocks: dict[str, list[str]] | None = None,
        feedback: Feedback = "position",
        **kwargs: Any,
    ) -> None:
        super().__init__(blocks=DEFAULT_BLOCKS if blocks is None else blocks, feedback=feedback, **kwargs)
        train, evaluation = choose_words(words, eval_words, path, num_eval)
        pictures = {f"word_{word}": draw_word(word, spacing) for word in train}
        figures = random_figures(num_shapes, random.Random(seed))
        pictures.update({f"shape_{index}": rows for index, rows in enumerate(figures)})
        held_out = {f"word_{word}": draw_word(word, spacing) for word in evaluation}
        self.splits = {"train": _as_tasks(pictures), "eval": _as_tasks(held_out)}
        check_tasks("StrBuild", self.splits["train"], self.splits["eval"])
        if self.reward == "paper":
            sizes = [(area(rows), len(targets(rows))) for rows in (*pictures.values(), *held_out.values())]
            lowest = -1.0 - 1.5 * max((cells - filled) / filled for cells, filled in sizes)
        else:
            lowest = -2.5 - 0.25 * len(self.agent_ids)
        self.set_reward_bounds(lowest, 2.0)

    def begin(self, task: Task, rng: random.Random) -> BuildState:
        """An empty grid; the game is deterministic."""
        return BuildState(task)

    def read(self, state: BuildState, agent_id: str, text: str) -> Reading:
        """Accept `/setblock` inside the grid with the agent's blocks."""
        box = bounding_box(state.task.data["rows"])
        return read_commands(text, Rules({"setblock"}, self.blocks[agent_id], box, self.command_shares[agent_id]))

    def score(self, state: BuildState, world: World) -> Score:
        """See `score_build`."""
        return score_build(state.task.data["rows"], world, list(self.blocks.values()), self.reward)

    def first_observation(self, state: BuildState, agent_id: str) -> str:
        """The target and, with the prompt "full", the rules."""
        rows = state.task.data["rows"]
        palette = self.blocks[agent_id]
        if self.prompt == "compact":
            return "\n".join([f"agent {self.position(agent_id)}: {' '.join(palette)}", *numbered(rows)])
        (_, (right, top, _)), team = bounding_box(rows), len(self.agent_ids)
        lines = [
            f"You are builder {self.position(agent_id)} in a team that lays out a flat picture in blocks."
            if team > 1
            else "You lay out a flat picture in blocks.",
            "",
            "The picture, its top row first, each row after its y. '#' needs a block, '.' has to stay empty:",
            *numbered(rows),
            "",
            f"A cell is named x y z: x is the column, 0 (left) to {right}; y is the row, 0 (bottom) to {top}; z is "
            f"always 0. The box is 0 0 0 to {right} {top} 0.",
            f"Your blocks: {', '.join(palette)}.",
            "",
            "Rules:",
            "- Answer with commands and nothing else, one on each line: /setblock x y z block",
            f"- For example, /setblock 0 {top} 0 {palette[0]} fills the top left cell; the block air empties a cell.",
            "- Fill cells marked '#' only.",
            "- Cells that share a side should hold different materials."
            + (" The other builders have other blocks than you." if team > 1 else ""),
            f"- At most {self.command_shares[agent_id]} commands count in one turn.",
        ]
        if self.reward == "released":
            lines.append("- Use each of your kinds of block at least once.")
        return "\n".join([*lines, *self.team_rules(), f"- {self.persistence_rule()}"])

    def next_observation(
        self, state: BuildState, agent_id: str, world: World, score: Score, rejected: Sequence[Sequence[str]]
    ) -> str:
        """The result of the turn, as `feedback` allows, and instructions for the next one."""
        rows = state.task.data["rows"]
        grid = numbered(compare(rows, world)) if self.feedback in {"position", "perfect"} else ()
        advice = self._advice(rows, state.world, agent_id) if self.feedback == "perfect" else []
        if self.prompt == "compact":
            return "\n".join([self.compact_header(state, score, rejected), *grid, *advice])
        lines = self.turn_report(state, score, rejected)
        if grid:
            lines += [
                "The build, its top row first, each row after its y. '+' is covered, '#' still needs a block, 'x' "
                "should be empty, '.' is empty:",
                *grid,
            ]
        if advice:
            lines += ["Commands that would serve you best next:", *advice]
        lines.append(self.persistence_rule())
        if self.persistent:
            lines.append("Write only what is to change: fill what is missing, empty with air what should be empty.")
        else:
            lines.append("Write your whole share of the picture again.")
        return "\n".join([*lines, "Answer with commands only."])

    def build_features(self, state: BuildState, score: Score) -> dict[str, float]:
        """Covered, missing and extra cells, as counts and shares of the target, and adjacent blocks of one texture."""
        counts = score.counts
        return {
            "target_cells": counts["targets"],
            "background_cells": counts["background"],
            "covered": counts["covered"],
            "covered_share": counts["covered"] / counts["targets"],
            "missing": counts["targets"] - counts["covered"],
            "extra": counts["extra"],
            "extra_share": counts["extra"] / counts["targets"],
            "same_texture_pairs": counts["same_texture_pairs"],
            "pairs": counts["pairs"],
            "adjacency": score.terms["adjacency"],
        }

    def build_text(self, state: BuildState, score: Score) -> str:
        """The build compared with the target, and its counts."""
        counts = score.counts
        return "\n".join(
            [
                *compare(state.task.data["rows"], state.built),
                f"covered {counts['covered']} of {counts['targets']}, extra {counts['extra']}, "
                f"alike {counts['same_texture_pairs']} of {counts['pairs']}",
            ]
        )

    def _advice(self, rows: Rows, world: World, agent_id: str) -> list[str]:
        """Commands of the agent that change `world` into the best build."""
        plan = checkerboard(rows, self.blocks)
        cells = [(cell, block) for cell, (owner, block) in plan.items() if owner == agent_id]
        lines = [command(cell, block) for cell, block in cells if world.get(cell) != block]
        if agent_id == self.agent_ids[0]:
            lines += [command(cell, "air") for cell in sorted(set(world) - set(plan))]
        return lines

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Besides the score: IoU, coverage, blocks on the background, share of adjacent blocks with one texture."""
        rows, world = trajectory.task.data["rows"], self.last_world(trajectory)
        cells = targets(rows)
        same, pairs = neighbours(world)
        return {
            **super().metrics(trajectory),
            "iou": iou(cells, world),
            "coverage": len(set(cells) & set(world)) / len(cells),
            "extra": float(len(set(world) - set(cells))),
            "adjacency": same / pairs if pairs else 0.0,
        }

    def drawing(self, task: Task, world: World, builders: Mapping[Cell, int]) -> Canvas:
        """One panel; every kind of block is right on a cell of the word."""
        rows = task.data["rows"]
        cells = grid_cells(rows)
        lines = [cells[start : start + len(rows[0])] for start in range(0, len(cells), len(rows[0]))]
        target = dict.fromkeys(targets(rows), "")
        return draw_builds([("", lines)], target, world, builders, self.agent_ids, kinds_count=False)

    def demonstrate(self, state: BuildState, rng: random.Random) -> dict[str, str]:
        """Each agent independently fills random missing cells with random blocks and mistakes, top row first."""
        rows = state.task.data["rows"]
        missing = [cell for cell in targets(rows) if cell not in state.world]
        empty = [cell for cell in grid_cells(rows) if cell not in set(targets(rows))]
        actions = {}
        for agent_id, palette in self.blocks.items():
            lines = []
            for cell in missing:
                if rng.random() >= DEMONSTRATION_COVERAGE:
                    continue
                if empty and rng.random() < DEMONSTRATION_SLIPS:
                    cell = rng.choice(empty)
                lines.append(command(cell, rng.choice(palette)))
            actions[agent_id] = "\n".join(lines)
        return actions


def _as_tasks(pictures: Mapping[str, Rows]) -> tuple[Task, ...]:
    return tuple(Task(task_id, {"rows": rows}) for task_id, rows in pictures.items())
