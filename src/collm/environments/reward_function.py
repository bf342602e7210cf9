"""Any reward function as a task: a Python function, a data set, and a template of the observation of each agent.

The team form of a function is `reward(fields, texts)`: the fields of the task's row, and the response of each agent by
agent id. It returns a number, a dict of terms whose sum is the reward, or a pair of one of these and a dict of metrics.
A function with a parameter `completions` has the form of TRL instead: lists over a batch, for one agent. See
docs/reward_function.md.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from collm.environments.base import BatchEnvironment, EpisodeFailure, Step, Turns
from collm.environments.calls import TooSlow, described
from collm.environments.contract import check_names_of_metrics
from collm.environments.rows import Row, load_rows
from collm.environments.splits import named, split_rows
from collm.environments.templates import Template, text_of
from collm.environments.user_function import RewardState, Score, UserFunction, read_score
from collm.environments.written import lines_as_svg
from collm.errors import ConfigurationError, TrainingError
from collm.runtime.checks import Count, Finite, Positive, Range, Whole, check_utf8, checked, shown
from collm.trajectory import Task, Trajectory

SAMPLES = "fence_samples.jsonl"
MAX_CHARACTERS = 100_000
"""Longer responses are cut before functions see them."""


class RewardFunctionTask(BatchEnvironment):
    """A task that consists of a data set, a template for each agent, and a Python function that returns the reward.

    Args:
        dataset: A .jsonl, .json, .csv or .parquet file, a folder with such files, a hub name such as owner/name, or
            "samples": fences to build, shipped with the package.
        reward: Import path of the reward function, such as my_rewards.brevity; the current folder is importable. It is
            called as `function(fields, texts)`: the fields of the row and `{agent_id: response}`. It returns a finite
            number, a dict of terms whose sum is the reward, or a pair of one of these and a dict of metrics. With a
            parameter `history` it also gets the earlier turns' responses, `[{agent_id: response}]`. A function with a
            parameter `completions` is called as TRL calls it: `function(prompts=, completions=, **columns)`. It may be
            asynchronous, and may raise `collm.environments.base.EpisodeFailure` to leave an episode out.
        templates: Observation of each agent, by agent id: a text with field names in braces, such as
            {writer: "Answer: {question}"}. By default one agent, `agent`, is shown {prompt}.
        feedback: Import path of a function with the same arguments, called after every turn but the last. It returns
            the next observation, one text for all agents or one by agent id, or None to end the episode.
        horizon: Largest number of turns of an episode; more than 1 needs `feedback`.
        min_reward: Smallest reward of one turn.
        max_reward: Largest reward of one turn.
        num_train: Number of training rows, the first of the data set; null for all that are not held out.
        num_eval: Number of held-out rows, those that follow.
        eval_dataset: Data set whose first rows are held out instead.
        seed: Shuffle the rows with this seed before they are split; null keeps their order.
        id_field: Field with the unique id of a row; null for its file and line.
        subset: Configuration of a hub data set that has several.
        split: Split of a hub data set.
        seconds: Time limit of one call of a function.
        max_concurrent: Number of calls of an asynchronous function at the same time.
        on_error: What happens if a function raises, is too slow or returns no finite number: `stop` ends the run with a
            message; `drop` leaves the episode out and counts it in `rollout/failed/reward_function`.
        trial: Call the functions once with blank responses before weights load, so that mistakes are found early.
    """

    @checked
    def __init__(
        self,
        dataset: str,
        reward: str,
        templates: dict[str, str] | None = None,
        feedback: str | None = None,
        horizon: Turns = 1,
        min_reward: Finite = 0.0,
        max_reward: Finite = 1.0,
        num_train: Count | None = None,
        num_eval: Count = 8,
        eval_dataset: str | None = None,
        seed: Whole | None = None,
        id_field: str | None = None,
        subset: str | None = None,
        split: str = "train",
        seconds: Positive = 60.0,
        max_concurrent: Annotated[int, Range(1, 1000, whole=True)] = 8,
        on_error: Literal["stop", "drop"] = "stop",
        trial: bool = True,
    ) -> None:
        self.horizon, self.min_reward, self.max_reward = horizon, min_reward, max_reward
        if (horizon > 1) != (feedback is not None):
            raise ConfigurationError(
                f"horizon is {horizon} and feedback {feedback!r}; name a feedback function for more than one turn, and "
                "none for a single one."
            )
        self.on_error = on_error
        templates = {"agent": "{prompt}"} if templates is None else templates
        if not isinstance(templates, Mapping) or not templates:
            raise ConfigurationError(f"templates is {shown(templates)}; give a text by agent id.")
        self.templates = {name: Template(f"the template of {name!r}", text) for name, text in templates.items()}
        self.agent_ids = tuple(self.templates)

        def load(name: str) -> list[Row]:
            rows = named(load_rows(name, subset, split, SAMPLES), id_field)
            for row in rows:
                for agent_id, template in self.templates.items():
                    template.check(row.location, row.fields)
                    check_utf8(f"{row.location}, shown to {agent_id!r}", template.fill(row.fields))
            return rows

        self.splits = split_rows(type(self).__name__, load, dataset, eval_dataset, num_train, num_eval, seed)
        tasks = [task for split in self.splits.values() for task in split]
        columns = list(dict.fromkeys(name for task in tasks for name in task.data))
        self.reward = UserFunction("reward", reward, seconds, max_concurrent, columns)
        self.feedback = (
            None if feedback is None else UserFunction("feedback", feedback, seconds, max_concurrent, columns)
        )
        self.reward.check(self.agent_ids, self.splits["train"][0])
        if self.feedback is not None:
            self.feedback.check(self.agent_ids, self.splits["train"][0])
            if self.feedback.is_batched:
                raise ConfigurationError(f"feedback is {feedback!r}, which has the form of a TRL reward function.")
        if trial:
            self.try_out()

    def try_out(self) -> None:
        """Call the functions once with blank responses; raises `ConfigurationError` for what they do wrong."""
        state = RewardState(self.splits["train"][0])
        try:
            (outcome,) = self.step_batch([state], [dict.fromkeys(self.agent_ids, "")])
        except TrainingError as error:
            raise ConfigurationError(
                f"{error} This was a trial with blank responses (trial: false omits it)."
            ) from error
        if isinstance(outcome, Step):
            terms = [f"reward/{term}" for term in outcome.terms]
            check_names_of_metrics(f"what {self.reward} returned", outcome.info.get("metrics", ()), terms)
        if isinstance(outcome, Step) and not self.min_reward <= outcome.reward <= self.max_reward:
            raise ConfigurationError(
                f"{self.reward} returned {outcome.reward:g} for blank responses, outside the range from min_reward "
                f"{self.min_reward:g} to max_reward {self.max_reward:g}; correct the range or the function."
            )

    def reset(self, task: Task, rng: random.Random) -> tuple[RewardState, dict[str, str]]:
        """Fill in the template of each agent."""
        return RewardState(task), {name: template.fill(task.data) for name, template in self.templates.items()}

    def step_batch(
        self, states: Sequence[RewardState], joint_actions: Sequence[Mapping[str, str]]
    ) -> list[Step | EpisodeFailure]:
        """The rewards of all joint actions: one call of a function of the TRL form, else one for each."""
        texts = [{name: action[name][:MAX_CHARACTERS] for name in self.agent_ids} for action in joint_actions]
        results = self.reward.results(states, texts, self.shown)
        outcomes: dict[int, Step | EpisodeFailure] = {}
        scores: dict[int, Score] = {}
        for index, (state, result) in enumerate(zip(states, results, strict=True)):
            score = self.read(state, result)
            if isinstance(score, Score):
                scores[index] = score
            else:
                outcomes[index] = score
        going_on = [index for index in scores if len(states[index].history) + 1 < self.horizon]
        told = self.next_observations([states[index] for index in going_on], [texts[index] for index in going_on])
        shown_next = dict(zip(going_on, told, strict=True))
        for index, score in scores.items():
            observations = shown_next.get(index, {})
            if isinstance(observations, EpisodeFailure):
                outcomes[index] = observations
                continue
            state = states[index].after(texts[index], score)
            info = {"metrics": score.metrics} if score.metrics else {}
            outcomes[index] = Step(state, observations, score.reward, score.terms, not observations, info)
        return [outcomes[index] for index in range(len(states))]

    def next_observations(
        self, states: Sequence[RewardState], texts: Sequence[dict[str, str]]
    ) -> list[dict[str, str] | EpisodeFailure]:
        """What the feedback function tells the agents about their responses."""
        if self.feedback is None or not states:
            return []
        answers = self.feedback.results(states, texts, self.shown)
        return [self.read_feedback(state, answer) for state, answer in zip(states, answers, strict=True)]

    def shown(self, task: Task) -> str:
        """The first observation of the first agent, TRL's prompt for data without a column `prompt`."""
        return self.templates[self.agent_ids[0]].fill(task.data)

    def read(self, state: RewardState, result: Any) -> Score | EpisodeFailure:
        """The reward in what the function returned; raises `TrainingError` if there is none and `on_error` is stop."""
        if isinstance(result, EpisodeFailure):
            return result
        score = None if isinstance(result, BaseException) else read_score(result)
        return score if isinstance(score, Score) else self.fail(self.reward, state, result, score)

    def read_feedback(self, state: RewardState, result: Any) -> dict[str, str] | EpisodeFailure:
        """The next observation of each agent; empty if the episode ends."""
        assert self.feedback is not None
        if isinstance(result, EpisodeFailure):
            return result
        if result is None:
            return {}
        texts = dict.fromkeys(self.agent_ids, result) if isinstance(result, str) else result
        if (
            isinstance(texts, Mapping)
            and set(texts) == set(self.agent_ids)
            and all(isinstance(text, str) for text in texts.values())
        ):
            return dict(texts)
        return self.fail(
            self.feedback, state, result, f"returned {shown(result)}, no text for all or each of {list(self.agent_ids)}"
        )

    def fail(self, function: UserFunction, state: RewardState, result: Any, problem: str | None) -> EpisodeFailure:
        """The failure of an episode because of `function`; raises `TrainingError` if `on_error` is stop."""
        if isinstance(result, TooSlow):
            problem = f"{result} (its limit is `seconds`)"
        elif isinstance(result, BaseException):
            problem = f"raised {described(result)}"
        message = f"{function} {problem} for task {state.task.task_id!r}"
        if self.on_error == "drop":
            return EpisodeFailure(message, cause=f"{function.setting}_function")
        raise TrainingError(f"{message}; mend it, or set on_error: drop to leave such episodes out.") from (
            result if isinstance(result, BaseException) else None
        )

    def state_features(self, state: RewardState) -> dict[str, float]:
        """The reward of the last turn and the largest one, 0 before the first turn."""
        rewards = state.rewards or (0.0,)
        return {"last_reward": rewards[-1], "best_reward": max(rewards)}

    def state_text(self, state: RewardState) -> str:
        """The fields of the row, those included that no agent sees, and the last reward."""
        lines = [f"{name}: {text_of(value)[:1000]}" for name, value in state.task.data.items()]
        if state.rewards:
            terms = ", ".join(f"{name} {value:.2f}" for name, value in state.terms.items())
            lines.append(f"reward {state.rewards[-1]:.2f}" + (f" ({terms})" if terms else ""))
        return "\n".join(lines)

    def render_turn(self, state: RewardState) -> str:
        """The fields of the row, the last responses and the reward."""
        said = [f"{name}: {text}" for name, text in state.history[-1].items()] if state.history else []
        return lines_as_svg("\n".join([*said, "", self.state_text(state)]))

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """The metrics that the function returned, each summed over the turns."""
        sums: dict[str, float] = {}
        for turn in trajectory.turns:
            for name, value in turn.info.get("metrics", {}).items():
                sums[name] = sums.get(name, 0.0) + value
        return sums
