"""Counterfactual responses: what would have come of another response of one agent, all else equal (C3).

Every task has one main episode. At each of its turns every agent gives K responses to its history. The first of every
agent make the joint action that the main episode goes on with; each further one replaces the first of its agent alone,
beside the same actions of the others, and the current policies play that episode to its end. With n agents and H turns
a task asks for n K H responses at the histories of its main episode, and has

    H + n (K - 1) H (H + 1) / 2

joint samples, rests of episodes included. A rollout tree, which branches in these rests too, has K^H paths.
The estimator is `collm.algorithms.c3.C3` (contextual counterfactual credit, arXiv 2603.06859).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collm.environments.base import Environment
from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, check_number
from collm.samplers.base import Episode
from collm.samplers.tree import Tree
from collm.trajectory import Action


class Counterfactual(Tree):
    """One episode per task, and at each of its turns K - 1 other responses of every agent, played to their ends.

    K is `data.num_generations`. The trajectories of a task are its main episode, then the others; they share the turns
    before the response in which they differ.

    Args:
        max_joint_samples: Largest number of joint actions in a rollout; more are refused.
    """

    counterfactual = True

    def __init__(self, max_joint_samples: int = 4096):
        self.max_joint_samples = check_number("Counterfactual.max_joint_samples", max_joint_samples, COUNT)

    def check(self, environment: Environment, num_tasks: int, num_generations: int) -> None:
        """Refuse groups of one, and rollouts with more joint samples than `max_joint_samples`."""
        agents, horizon = len(environment.agent_ids), environment.horizon
        if num_generations < 2:
            raise ConfigurationError(
                f"data.num_generations is {num_generations}, but Counterfactual compares that many responses of an "
                "agent; set it to 2 or more."
            )
        size = horizon + agents * (num_generations - 1) * horizon * (horizon + 1) // 2
        if num_tasks * size > self.max_joint_samples:
            raise ConfigurationError(
                f"{num_generations} responses (data.num_generations) of {agents} agents at each of {horizon} turns, "
                f"played to the end, have {size:,} joint samples, and {num_tasks * size:,} in a rollout of {num_tasks} "
                f"tasks; max_joint_samples is {self.max_joint_samples:,}. Lower num_generations, the horizon or "
                "tasks_per_rollout, or raise it."
            )

    def most_at_once(self, environment: Environment, num_generations: int) -> int:
        """In the last turn K of the main episode, and one of each other episode that began before."""
        others = len(environment.agent_ids) * (num_generations - 1) * (environment.horizon - 1)
        return num_generations + others

    def num_responses(self, paths: Sequence[Episode], num_generations: int) -> list[int]:
        mains = {path.trajectory.group: path for path in reversed(paths)}  # the first path of each task
        return [num_generations if path is mains[path.trajectory.group] else 1 for path in paths if not path.done]

    def num_combined(self, num_responses: int, num_agents: int) -> int:
        return 1 + num_agents * (num_responses - 1)

    def combine(self, drawn: Sequence[Mapping[str, Action]]) -> list[dict[str, Action]]:
        """The first responses together, then each further one, which replaces the first response of its agent."""
        main = dict(drawn[0])
        return [main, *(main | {agent_id: other[agent_id]} for agent_id in main for other in drawn[1:])]
