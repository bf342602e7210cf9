"""A rollout tree: at every node all agents answer K times, and the episode continues from every joint action (MAGRPO).

Paths with a common beginning share its turns, so that every joint action is played and rewarded once. Each agent is
asked K times at every node: with n agents and H turns

    N_call = n K (K^H - 1) / (K - 1)        (arXiv 2601.21972, proposition 4.3; aligned joint actions)

responses per task, all nodes of a turn in one batch per agent.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, count, product
from typing import Literal

import torch

from collm.environments.base import Environment
from collm.errors import ConfigurationError
from collm.rollout_tree import Branch
from collm.runtime.checks import COUNT, check_choice, check_number
from collm.samplers.base import Actors, Episode, act_all
from collm.samplers.parallel import Parallel
from collm.trajectory import Action


class Tree(Parallel):
    """Branches every history into K = `data.num_generations` joint actions.

    A rollout is one tree per task. Its trajectories are the paths from the root to the leaves, and the joint actions
    of a node are the group that baselines compare.

    Args:
        joint: How K responses of every agent make joint actions. `aligned`: the first of every agent, the second of
            every agent, and so on, K per node. `cross`: every combination, K^n per node, for the same model calls at
            a node; the advantage of a response is then the mean over what the others did.
        max_joint_samples: Largest number of joint actions in a rollout; a larger tree is refused.
    """

    independent = False

    def __init__(self, joint: Literal["aligned", "cross"] = "aligned", max_joint_samples: int = 4096):
        self.joint = check_choice("Tree.joint", joint, ("aligned", "cross"))
        self.max_joint_samples = check_number("Tree.max_joint_samples", max_joint_samples, COUNT)

    def check(self, environment: Environment, num_tasks: int, num_generations: int) -> None:
        """Refuse trees with more joint samples than `max_joint_samples`."""
        branches = self.num_combined(num_generations, len(environment.agent_ids))
        size, width = 0, 1
        for _ in range(environment.horizon):
            width *= branches
            size += width
            if width > 10**12:
                break  # far too large already; the exact number would be too long to print
        if num_tasks * size > self.max_joint_samples:
            more = "more than " if width > 10**12 else ""
            raise ConfigurationError(
                f"a rollout tree with {branches} {self.joint} joint actions per node (data.num_generations "
                f"{num_generations}) over {environment.horizon} turns has {more}{size:,} joint samples, and "
                f"{more}{num_tasks * size:,} in a rollout of {num_tasks} tasks; max_joint_samples is "
                f"{self.max_joint_samples:,}. Lower num_generations, the horizon or tasks_per_rollout, or raise it."
            )

    def play_turn(
        self, episodes: list[Episode], actors: Actors, generator: torch.Generator, num_generations: int, greedy: bool
    ) -> list[Episode]:
        """All paths after the next turn: each that is not done is continued by every joint action of its node."""
        active = [path for path in episodes if not path.done]
        counts = self.num_responses(episodes, num_generations)
        asked = [path for path, times in zip(active, counts, strict=True) for _ in range(times)]
        drawn = self.joint_actions(asked, actors, generator, greedy)
        ends = accumulate(counts)
        chosen = [self.combine(drawn[end - times : end]) for end, times in zip(ends, counts, strict=True)]
        children = [self.branch(path, len(actions)) for path, actions in zip(active, chosen, strict=True)]
        # one call for all nodes, so that slow rewards are computed side by side
        act_all([child for own in children for child in own], [action for own in chosen for action in own])
        numbered = (turn.branch.node for path in episodes for turn in path.trajectory.turns if turn.branch)
        numbers = count(1 + max(numbered, default=-1))
        for path, own in zip(active, children, strict=True):
            self.number(path, own, numbers)
        of_active = iter(children)
        return [child for path in episodes for child in ([path] if path.done else next(of_active))]

    def most_at_once(self, environment: Environment, num_generations: int) -> int:
        """K at each node of the last turn."""
        branches = self.num_combined(num_generations, len(environment.agent_ids))
        return branches ** (environment.horizon - 1) * num_generations

    def num_joint_actions(self, episodes: Sequence[Episode], num_generations: int) -> int:
        num_agents = len(episodes[0].environment.agent_ids)
        counts = self.num_responses(episodes, num_generations)
        return sum(self.num_combined(count, num_agents) for count in counts)

    def num_combined(self, num_responses: int, num_agents: int) -> int:
        """How many joint actions `combine` makes of that many responses of every agent."""
        return num_responses ** (num_agents if self.joint == "cross" else 1)

    def num_responses(self, paths: Sequence[Episode], num_generations: int) -> list[int]:
        """How many responses every agent gives after the history of each path that is not over."""
        return [num_generations for path in paths if not path.done]

    def combine(self, drawn: Sequence[Mapping[str, Action]]) -> list[dict[str, Action]]:
        """Joint actions of one node from K responses of every agent; crossed ones share the responses."""
        if self.joint == "aligned":
            return [dict(joint_action) for joint_action in drawn]
        responses = {agent_id: [joint_action[agent_id] for joint_action in drawn] for agent_id in drawn[0]}
        return [dict(zip(responses, chosen, strict=True)) for chosen in product(*responses.values())]

    @staticmethod
    def branch(path: Episode, num_children: int) -> list[Episode]:
        """Independent copies of `path` that continue it; they share its turns and the state of its random generator."""
        children = []
        for index in range(num_children):
            child = copy.copy(path)
            # states are not promised to be immutable, and may hold a generator
            child.state, child.rng = copy.deepcopy((path.state, path.rng))
            weight = path.trajectory.weight / num_children
            failures = [] if index else list(path.trajectory.failures)  # each counts once
            child.trajectory = replace(
                path.trajectory, turns=list(path.trajectory.turns), failures=failures, weight=weight
            )
            children.append(child)
        return children

    @staticmethod
    def number(path: Episode, children: Sequence[Episode], numbers: count[int]) -> None:
        """Record the node and the parent of the turn that `children` have played since `path`."""
        turns = path.trajectory.turns
        parent = turns[-1].branch.node if turns and turns[-1].branch else -1 - path.trajectory.group
        for child in children:
            if len(child.trajectory.turns) > len(turns):
                child.trajectory.turns[-1].branch = Branch(next(numbers), parent)
