"""Rewards of recorded cases, without any model, for `tools/score.py`.

A case is one JSON object per line, of one of two kinds. One kind holds everything that its reward depends on: `env` and
`inputs` (writing, coding), or `env`, `task` and `completions` (the building games). The other kind is a transcript, as
`predict` and evaluations write it, which names a task of an environment; its actions are replayed in the environment of
the run. `command.DIFFERENCES`, which `--help` shows, says where scores differ from those of the authors' released code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from collm.environments.base import Environment
from collm.environments.building.blocks import iou
from collm.environments.building.blueprints import Blueprint
from collm.environments.building.lettering import targets
from collm.environments.coding.data import check_problem
from collm.environments.coding.reward import READINGS
from collm.environments.rows import Row
from collm.environments.writing.arxiv import ArXiv
from collm.environments.writing.base import split_paragraphs
from collm.environments.writing.pair_score import score_pair
from collm.environments.writing.tldr import TLDR
from collm.errors import ConfigurationError, shortened
from collm.sandbox.pool import Sandbox, SandboxFailure
from collm.scoring.cases import CaseError, Result, get, score_house_build, score_str_build, texts
from collm.scoring.transcripts import replayed

WRITING = {"tldr": TLDR, "arxiv": ArXiv}


class Scorer:
    """Scores cases and transcripts.

    Args:
        reward: Form of the reward; None for "paper" in cases, and for the configured form in transcripts.
        sandbox: Sandbox that runs programs.
        environment: Makes the environment in which transcripts are replayed, from a form of the reward; None if
            transcripts cannot be replayed.
    """

    def __init__(
        self,
        reward: str | None = None,
        sandbox: Sandbox | None = None,
        environment: Callable[[str | None], Environment] | None = None,
    ):
        self.reward = reward
        self.form = reward or "paper"
        self.sandbox = sandbox or Sandbox()
        self._make_environment = environment
        self._environments: dict[str | None, Environment] = {}  # by form of the reward

    def begin(self, case: Any) -> Callable[[], Result]:
        """Check a case and start to score it; the returned function waits for the result."""
        if not isinstance(case, Mapping):
            raise CaseError(f"expected an object, got {type(case).__name__}")
        if "turns" in case:
            result = self.transcript(case)
            return lambda: result
        name = get(case, "env", str)
        if name.startswith("code_generation"):
            return self.coding(get(case, "inputs", dict), alone=name.endswith("_single_agent"))
        if name.removesuffix("_single_agent") in WRITING:
            result = self.writing(name, get(case, "inputs", dict))
        elif name in ("str_build", "str_build_feedback"):
            result = score_str_build(get(case, "task", dict), texts(case, "completions"), self.form)
        elif name in ("house_build", "house_build_feedback"):
            result = score_house_build(get(case, "task", dict), texts(case, "completions"), self.form)
        else:
            raise CaseError(f"env {name!r} is none of tldr, arxiv, code_generation, str_build, house_build")
        return lambda: result

    def writing(self, name: str, inputs: Mapping[str, Any]) -> Result:
        """Score two texts, or one response that contains both."""
        form = WRITING[name.removesuffix("_single_agent")].forms[self.form]
        if name.endswith("_single_agent"):
            pair = split_paragraphs(get(inputs, "response", str))
        else:
            pair = (get(inputs, "completion1", str), get(inputs, "completion2", str))
        score = score_pair(form, *pair)
        return {"reward": score.total, "terms": score.terms}

    def coding(self, inputs: Mapping[str, Any], alone: bool) -> Callable[[], Result]:
        """Score a helper's and a main completion; the program runs while the next cases are read."""
        helper, main = (get(inputs, f"{name}_completion", str) for name in ("aux", "main"))
        # A case may lack a test, unlike a problem of a training set.
        problem = {name: get(inputs, name, str) for name in ("prompt", "test", "entry_point")}
        if problem["test"].strip():
            try:
                check_problem(Row("case", "inputs", {"task_id": "case", **problem}))
            except ConfigurationError as error:
                raise CaseError(str(error)) from None
        reading = READINGS[self.form](problem, None if alone else helper, main)
        case = reading.case()
        verdict = None if case is None else self.sandbox.submit(case)

        def finish() -> Result:
            score = reading.score(None if verdict is None else verdict.result())
            return {
                "reward": max(0.0, score.total_reward),
                "terms": dict(score.terms),
                "passed": score.passed,
                "total": score.total,
                "error": score.error,
            }

        return finish

    def transcript(self, record: Mapping[str, Any]) -> Result:
        """Score a transcript by replaying its actions."""
        if "seed" not in record and self.reward is not None:  # other rewards may be shown in observations
            replayed(self.environment(None), record)
        environment = self.environment(self.reward)
        task, steps = replayed(environment, record, as_played=self.reward is None)
        turns: list[Result] = [
            {"reward": step.reward, "terms": step.terms, **from_info(step.info, environment, task)} for step in steps
        ]
        terms: dict[str, float] = {}
        for turn in turns:
            for name, value in turn["terms"].items():
                terms[name] = terms.get(name, 0.0) + value
        last = {name: value for name, value in (turns[-1] if turns else {}).items() if name in ("agents", "iou")}
        return {"reward": sum(turn["reward"] for turn in turns), "terms": terms, **last, "turns": turns}

    def environment(self, reward: str | None) -> Environment:
        """The environment of the run, with that form of the reward."""
        if self._make_environment is None:
            raise CaseError("a transcript needs the config.yaml of its run; give it with --config")
        if reward not in self._environments:
            self._environments[reward] = self._make_environment(reward)
        return self._environments[reward]


def from_info(info: Mapping[str, Any], environment: Environment, task: Any) -> Result:
    """Accepted and rejected commands of each agent and the IoU in a building game; empty for other environments."""
    if "accepted" not in info:
        return {}
    cells = targets(task.data["rows"]) if "rows" in task.data else Blueprint.of(task.data).world
    agents = [
        {
            "accepted": info["accepted"][name],
            "rejected": [{"line": line, "reason": reason} for line, reason in info["rejected"][name]],
        }
        for name in environment.agent_ids
    ]
    return {"agents": agents, "iou": iou(cells, [tuple(entry[:3]) for entry in info["world"]])}


def score_lines(lines: Iterable[str], scorer: Scorer) -> Iterator[Result]:
    """Yield one result for each line that is not blank, in order; for a bad line, an error with its number."""
    started: list[tuple[int, Callable[[], Result] | str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            started.append((number, scorer.begin(json.loads(line))))
        except (CaseError, ValueError, RecursionError) as error:
            started.append(
                (number, f"{type(error).__name__}: {error}" if isinstance(error, RecursionError) else str(error))
            )
    for number, finish in started:
        if isinstance(finish, str):
            yield {"line": number, "error": finish}
            continue
        try:
            yield {"line": number, **finish()}
        except SandboxFailure as error:
            yield {"line": number, "error": str(error)}


def configured_environment(config: Path) -> Callable[[str | None], Environment]:
    """A function that makes the environment of a run's config.yaml, optionally with another form of the reward."""

    def make(reward: str | None) -> Environment:
        from jsonargparse import ArgumentError, ArgumentParser

        try:
            settings = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["environment"]
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise CaseError(f"{config} holds no data.environment ({error!r})") from None
        if reward is not None:
            settings["init_args"] = {**(settings.get("init_args") or {}), "reward": reward}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Environment, "environment", required=True)
        try:
            parsed = parser.parse_object({"environment": settings})
        except ArgumentError as error:
            form = "" if reward is None else f" with the reward {reward!r} (leave out --reward if it has no such form)"
            raise CaseError(f"the environment of {config} cannot be made{form}: {shortened(str(error))}") from None
        return parser.instantiate_classes(parsed).environment

    return make


def find_config(cases: Path) -> Path | None:
    """The config.yaml of the run whose folder contains the transcript."""
    return next(
        (path for path in (folder / "config.yaml" for folder in cases.resolve().parents[:3]) if path.is_file()), None
    )
