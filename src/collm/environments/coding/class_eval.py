"""Class completion: several agents write the methods of one class, each its own, without seeing the others' code.

The task follows ClassEval (arXiv 2308.01861). The methods are merged into one class, which runs the tests of every
method in the sandbox. With the methods of one agent left out, the difference in passed tests is its contribution.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from collm.environments.base import Agents, BatchEnvironment, EpisodeFailure, Step, Turns
from collm.environments.coding.class_data import load_classes
from collm.environments.coding.class_program import Skeleton, read_methods, read_skeleton
from collm.environments.coding.class_score import OVERLAP, PASSED, WRITTEN, ClassScore, Team
from collm.environments.pay import Density, paid
from collm.environments.splits import split_rows
from collm.environments.written import lines_as_svg
from collm.errors import ConfigurationError
from collm.runtime.checks import Count, Finite, Whole, checked
from collm.sandbox.pool import Sandbox, SandboxFailure
from collm.trajectory import Task, Trajectory


@dataclass(frozen=True)
class ClassState:
    """State of an episode: the class, the number of turns played, and the score of the last one."""

    task: Task
    turn: int = 0
    last: ClassScore = ClassScore({})


class ClassEval(BatchEnvironment):
    """Write the methods of one class together; the methods are dealt out to the agents.

    The score of a turn is between -1 and 6: 2 times the share of methods that are written, 4 times the share of tests
    that pass, minus the share of methods that several agents write. Tests that an empty class passes do not count.

    Args:
        dataset: "samples" (8 small classes shipped with the package), a .jsonl file (see
            `collm.environments.coding.class_data`), or the hub name FudanSELab/ClassEval.
        num_agents: Number of agents, named coder_1, coder_2, ...; 1 for the single-agent baseline.
        deal: `in_turn` deals the methods out one by one; `blocks` gives each agent neighbouring ones.
        num_train: Number of training classes; null for all that are not held out.
        num_eval: Number of held-out classes.
        seed: Shuffle the classes with this seed before they are split; null keeps their order.
        horizon: Largest number of turns of an episode.
        feedback: Feedback to agents after a turn: `none`, or `tests`, how many tests of their own methods passed.
        reward_density: `dense` gives the score of each turn as its reward, `sparse` that of the last turn only.
        termination_score: End the episode when a turn scores more than this; null for never.
        contributions: Measure the contribution of each agent, which takes one more run of the tests for each.
        sandbox: Sandbox that runs the programs; by default with one worker per CPU core.
    """

    min_reward, max_reward = OVERLAP, WRITTEN + PASSED

    @checked
    def __init__(
        self,
        dataset: str = "samples",
        num_agents: Agents = 2,
        deal: Literal["in_turn", "blocks"] = "in_turn",
        num_train: Count | None = None,
        num_eval: Count = 2,
        seed: Whole | None = None,
        horizon: Turns = 1,
        feedback: Literal["none", "tests"] = "tests",
        reward_density: Density = "dense",
        termination_score: Finite | None = None,
        contributions: bool = True,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.horizon, self.termination_score, self.deal = horizon, termination_score, deal
        self.feedback, self.reward_density = feedback, reward_density
        self.agent_ids = tuple(f"coder_{index + 1}" for index in range(num_agents))
        self.contributions = contributions
        self.splits = split_rows(type(self).__name__, load_classes, dataset, None, num_train, num_eval, seed)
        self.sandbox = Sandbox() if sandbox is None else sandbox
        # Raise now, before models load, if this machine cannot confine programs.
        _ = self.sandbox.protections

    def dealt(self, skeleton: Skeleton) -> dict[str, tuple[str, ...]]:
        """The methods of each agent."""
        names, num = list(skeleton.stubs), len(self.agent_ids)
        owner = [index % num if self.deal == "in_turn" else index * num // len(names) for index in range(len(names))]
        return {
            agent_id: tuple(name for name, own in zip(names, owner, strict=True) if own == index)
            for index, agent_id in enumerate(self.agent_ids)
        }

    def reset(self, task: Task, rng: random.Random) -> tuple[ClassState, dict[str, str]]:
        """Show each agent the class and its methods."""
        skeleton = read_skeleton(task.data["skeleton"])
        source = skeleton.source.strip()
        return ClassState(task), {
            agent_id: f"{source}\n\n{self.request(skeleton.class_name, own)}"
            for agent_id, own in self.dealt(skeleton).items()
        }

    def request(self, class_name: str, own: Sequence[str]) -> str:
        """What an agent with the methods `own` is asked for."""
        if not own:
            return f"The methods of {class_name} are written by others. Answer with an empty text."
        others = " Others write the other methods." if len(self.agent_ids) > 1 else ""
        return (
            f"Write these methods of {class_name}: {', '.join(own)}.{others} Answer with the function definitions in "
            "Python only, and keep their parameters."
        )

    def step_batch(
        self, states: Sequence[ClassState], joint_actions: Sequence[Mapping[str, str]]
    ) -> list[Step | EpisodeFailure]:
        """Test all classes in parallel: as written, empty, and without each agent in turn."""
        teams = [
            Team(state.task, self.dealt(read_skeleton(state.task.data["skeleton"])), action)
            for state, action in zip(states, joint_actions, strict=True)
        ]
        waiting = [
            {left_out: self.sandbox.submit(case) for left_out, case in team.cases(self.contributions).items()}
            for team in teams
        ]
        outcomes: list[Step | EpisodeFailure] = []
        for state, team, verdicts in zip(states, teams, waiting, strict=True):
            try:
                score = team.score({left_out: verdict.result() for left_out, verdict in verdicts.items()})
            except SandboxFailure as failure:
                outcomes.append(EpisodeFailure(f"{state.task.task_id}: {failure}", cause="sandbox"))
                continue
            outcomes.append(self.step_of(state, team, score))
        return outcomes

    def step_of(self, state: ClassState, team: Team, score: ClassScore) -> Step:
        """The step of a turn with this score."""
        after = replace(state, turn=state.turn + 1, last=score)
        terminated = self.termination_score is not None and score.total > self.termination_score
        over = terminated or after.turn >= self.horizon
        observations = {} if over else {name: self.told(own, score) for name, own in team.dealt.items()}
        reward = paid(self.reward_density, score.total, score.total, over)
        info = {
            "score": score.total,
            "passed": score.num_passed,
            "written": sum(map(len, score.written.values())),
            "methods": len(team.skeleton.stubs),
            "contributions": dict(score.contributions),
            "error": score.error,
        }
        return Step(after, observations, reward, dict(score.terms), terminated, info)

    def told(self, own: Sequence[str], score: ClassScore) -> str:
        """What an agent learns after a turn."""
        lines = []
        if self.feedback == "tests":
            lines += [f"The class does not load: {score.error}"] if score.error else []
            lines += [
                f"{name}: {good} of {total} tests pass." for name, (good, total) in score.passed.items() if name in own
            ]
        return "\n".join(
            [*lines, "Write all of your methods again, improved." if own else "Answer with an empty text."]
        )

    def state_features(self, state: ClassState) -> dict[str, float]:
        """Numbers of methods and tests of the class, and what the methods of the last turn came to."""
        passed, total = state.last.num_passed
        skeleton = read_skeleton(state.task.data["skeleton"])
        return {
            "methods": len(skeleton.stubs),
            "tests": len(state.task.data["tests"]),
            "written": sum(map(len, state.last.written.values())),
            "passed_share": passed / total if total else 0.0,
            "score": state.last.total,
        }

    def state_text(self, state: ClassState) -> str:
        """Which methods of the last turn pass how many tests."""
        if not state.turn:
            return "no methods yet"
        passed = ", ".join(f"{name or 'class'} {good} of {total}" for name, (good, total) in state.last.passed.items())
        return f"tests that pass: {passed}; score {state.last.total:.2f} of {self.max_reward:.2f}"

    def render_turn(self, state: ClassState) -> str:
        """The tests of each method, black where they pass."""
        last = state.last
        counts = [f"{name}: {'■' * good}{'□' * (total - good)}" for name, (good, total) in last.passed.items()]
        shares = [f"contribution of {agent_id}: {share:.2f}" for agent_id, share in last.contributions.items()]
        return lines_as_svg("\n".join([*counts, *shares, last.error, self.state_text(state)]))

    def progress(self, state: ClassState) -> float:
        """Score of the last turn, out of the best one."""
        return max(0.0, state.last.total) / self.max_reward

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Of the last turn: the score, shares of tests and methods, whether all tests pass, contributions."""
        if not trajectory.turns:
            return {}
        info = trajectory.turns[-1].info
        passed, total = info["passed"]
        return {
            "score": info["score"],
            "pass_rate": passed / total if total else 0.0,
            "pass": float(passed == total > 0),
            "written": info["written"] / info["methods"],
            **{f"contribution/{agent_id}": share for agent_id, share in info["contributions"].items()},
        }

    def demonstrate(self, state: ClassState, rng: random.Random) -> dict[str, str]:
        """Each agent writes its methods as the solution of the data set does."""
        task = state.task
        if not task.data["solution"]:
            raise ConfigurationError(f"{task.task_id}: the data hold no solution; choose another sampler.")
        skeleton = read_skeleton(task.data["skeleton"])
        sources = read_methods(task.data["solution"], skeleton).sources
        return {
            agent_id: "\n\n".join(sources[name] for name in own if name in sources)
            for agent_id, own in self.dealt(skeleton).items()
        }
