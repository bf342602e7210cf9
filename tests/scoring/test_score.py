"""The score tool: recorded cases, transcripts, and lines that are no case."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from collm.environments.base import Environment
from collm.environments.building.house_build import HouseBuild
from collm.environments.building.str_build import StrBuild
from collm.environments.games.relay import Relay
from collm.samplers.episode import Episode, act_all
from collm.scoring import command
from collm.scoring import score as scoring
from collm.trajectory import Action, Trajectory, Turn

REPOSITORY = Path(__file__).parents[2]
PALETTES = [["oak_planks", "stone", "air"], ["white_concrete", "obsidian", "air"]]
ROWS = {
    "env": "str_build",
    "task": {
        "target_rows_topdown": [".##", "##."],
        "bbox_from": [0, 0, 0],
        "bbox_to": [2, 1, 0],
        "blocks_per_agent": PALETTES,
        "max_commands_total": 5,
        "num_agents": 2,
    },
    "completions": [
        "/setblock 0 0 0 stone\n/setblock 1 0 0 oak_planks\nhello\n/setblock 3 0 0 stone\n/setblock 2 0 0 stone",
        "/setblock 1 1 0 obsidian\n/setblock 2 1 0 white_concrete\n/setblock 0 0 0 obsidian",
    ],
}
HOUSE = {
    "env": "house_build",
    "task": {
        "inventory": {"W": "white_concrete", "A": "air"},
        "layers": {"0": ["WW", "WW"], "1": ["WA", "AA"]},
        "bbox_from": [0, 0, 0],
        "bbox_to": [1, 1, 1],
        "blocks_per_agent": [["white_concrete"], ["white_concrete"]],
        "max_commands_total": 600,
        "limited_resource": True,
        "player_hp": 5,
        "spider_attacks": [1, 1, 1],
        "num_agents": 2,
    },
    "completions": [
        "/fill 0 0 0 1 0 1 white_concrete",
        "/fill 0 1 0 1 1 0 white_concrete\n/fill 0 0 0 1 1 1 white_concrete",
    ],
}
CODE = {
    "env": "code_generation",
    "inputs": {
        "aux_completion": "def aux(xs):\n    return [x for x in xs if x > 0]\n",
        "main_completion": "def total(xs):\n    # aux(xs)\n    kept = [x for x in xs if x > 0]\n    return sum(kept)\n",
        "prompt": 'def total(xs):\n    """Sum of the positive numbers."""\n',
        "test": "def check(candidate):\n    assert candidate([1, -1]) == 1\n    assert candidate([]) == 1\n",
        "entry_point": "total",
    },
}
WRITING = {
    "env": "tldr",
    "inputs": {"completion1": "one two three four five six seven eight", "completion2": "one " * 8},
}


def score(tmp_path: Path, *lines: Any, arguments: tuple[str, ...] = (), status: int = 0) -> list[dict[str, Any]]:
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    run = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "score.py"), str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == status, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_released_rewards_and_bad_lines(tmp_path: Path) -> None:
    alone = {"env": "code_generation_single_agent", "inputs": CODE["inputs"]}
    class_eval = {"env": "classeval", "inputs": {}}
    long_box = {**ROWS, "task": {**ROWS["task"], "bbox_to": [9, 9, 9]}}
    lines = [
        ROWS,
        "{",
        HOUSE,
        "",
        CODE,
        alone,
        WRITING,
        class_eval,
        [1],
        long_box,
        {"env": "tldr", "inputs": {}},
        {"env": 3},
    ]
    results = score(tmp_path, *lines, arguments=("--reward", "released"), status=1)
    assert [result["line"] for result in results] == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    build, bad, house, code, single, writing, *errors = results
    # All four cells covered and one of two others, five pairs of neighbours without equals, all kinds of block used.
    assert build["terms"] == {"coverage": 2.0, "extra": -0.75, "adjacency": 0.0, "palette": 0.0}
    assert build["reward"] == pytest.approx(1.25)
    assert build["iou"] == pytest.approx(4 / 5)
    # Five commands are split 3 + 2; a rejected line uses none up.
    assert (
        build["agents"]
        == [
            {
                "accepted": 3,
                "rejected": [
                    {"line": "hello", "reason": "unknown_command"},
                    {"line": "/setblock 3 0 0 stone", "reason": "out_of_bounds"},
                ],
            },
            {"accepted": 2, "rejected": [{"line": "/setblock 0 0 0 obsidian", "reason": "over_command_cap"}]},
        ]
        or build["agents"]
    )
    assert bad["line"] == 2
    assert "Expecting property name" in bad["error"]
    # Five W for two agents: ceil(5/2) + floor(5/4) = 4 each. The floor takes all of the first; the second fills two
    # cells, one of which should stay empty, and cannot pay for eight. 4 + 1 + 2 of 8 cells are right; spiders 3 of 5.
    assert house["terms"] == {"match": 0.875, "spiders": pytest.approx(-0.06)}
    assert house["agents"][1] == {
        "accepted": 1,
        "rejected": [{"line": "/fill 0 0 0 1 1 1 white_concrete", "reason": "over_resource_limit"}],
    }
    assert house["iou"] == pytest.approx(5 / 6)
    assert code["reward"] == pytest.approx(0.4 + 0.6 + 0.5 + 0.5 + 0.5 + 1.0)
    assert single["reward"] == pytest.approx(0.6 + 0.5 + 0.5)
    # Eight words each; the second text has 32 of 39 characters, too few.
    assert writing["reward"] == 0.5
    assert [bool(result["error"]) for result in errors] == [True] * 5
    assert "classeval" in errors[0]["error"]


def test_the_paper_is_the_default(tmp_path: Path) -> None:
    build, house, code = score(tmp_path, ROWS, HOUSE, CODE)
    # One block beside a target of four cells.
    assert build["terms"] == {"coverage": 2.0, "extra": -0.375, "adjacency": 0.0}
    assert house["terms"] == {"coverage": 2.0, "redundancy": -0.3, "spiders": pytest.approx(-0.12)}
    # A comment is no use of the helper.
    assert code["reward"] == pytest.approx(0.4 + 0.6 + 0.5 + 0.5)


# Where "paper" differs by design: what the main function does, and its reward by either form. One of two asserts holds.
BY_DESIGN = {
    # 0.4 + 0.6 + 0.5 + 0.5; a mention of the helper earns 0.5 + 1.0 by the released rules
    "comment": (CODE["inputs"]["main_completion"], 2.0, 3.5),
    # + 0.5 + 1.0 for a helper that is called, - 0.5 because nothing is made of it
    "thrown_away": ("def total(xs):\n    aux(xs)\n    return sum(x for x in xs if x > 0)\n", 3.0, 3.5),
    # by the released rules the function ends behind the nested one: 0.4 + 0.6 + 0.5 and no test
    "nested": (
        "def total(xs):\n    def good(x):\n        return x > 0\n    return sum(x for x in aux(xs) if good(x))\n",
        3.5,
        1.5,
    ),
    # an import of its own is lost, so that nothing runs: 0.4 + 0.6 + 0.5
    "import": ("import math\n\ndef total(xs):\n    return math.fsum(aux(xs)) * 1.0\n", 3.5, 1.5),
}


@pytest.mark.parametrize("case", BY_DESIGN)
def test_where_coding_differs_from_the_released_rules(case: str) -> None:
    main, paper, released = BY_DESIGN[case]
    line = json.dumps({**CODE, "inputs": {**CODE["inputs"], "main_completion": main}})
    for form, reward in (("paper", paper), ("released", released)):
        scorer = scoring.Scorer(form)
        (result,) = scoring.score_lines([line], scorer)
        scorer.sandbox.close()
        assert result["reward"] == pytest.approx(reward), (form, result)


def test_help_says_where_scores_differ(capsys: pytest.CaptureFixture[str]) -> None:
    # that writing differs in transitions alone, and games not at all, is tested with their environments
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert command.DIFFERENCES in capsys.readouterr().out


def test_transcripts_are_replayed(tmp_path: Path) -> None:
    options = {"words": ["I", "L"], "eval_words": ["T"], "horizon": 2}
    environment = StrBuild(**options)
    task = environment.tasks("eval")[0]
    state, observations = environment.reset(task, None)
    trajectory = Trajectory(task, 0, 2, environment.max_reward)
    for text in ("/setblock 2 0 0 stone\nnonsense", "/setblock 2 1 0 stone\n/setblock 0 0 0 stone"):
        actions = {"builder_1": text, "builder_2": ""}
        step = environment.step(state, actions)
        acted = {name: Action(action) for name, action in actions.items()}
        trajectory.turns.append(Turn(observations, acted, step.reward, step.terms, step.info))
        state, observations = step.state, step.observations
    config = {
        "data": {"environment": {"class_path": "collm.environments.building.str_build.StrBuild", "init_args": options}}
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    (result, unknown) = score(tmp_path, trajectory.record(), {**trajectory.record(), "task_id": "other"}, status=1)
    assert result["reward"] == pytest.approx(trajectory.total_reward)
    assert [turn["reward"] for turn in result["turns"]] == pytest.approx([turn.reward for turn in trajectory.turns])
    assert result["turns"][0]["agents"][0] == {
        "accepted": 1,
        "rejected": [{"line": "nonsense", "reason": "unknown_command"}],
    }
    assert "task 'other' is not one of" in unknown["error"]
    (released, _) = score(tmp_path, trajectory.record(), "{", arguments=("--reward", "released"), status=1)
    assert "palette" in released["terms"]


def played(environment: Environment, seed: int, act: Callable[[Any], Mapping[str, str]]) -> Trajectory:
    """An episode of the first held-out task in which agents write what `act` says in a state."""
    episode = Episode(environment, environment.tasks("eval")[0], group=0, seed=seed)
    while not episode.done:
        act_all([episode], [{name: Action(text) for name, text in act(episode.state).items()}])
    return episode.trajectory


def scorer_of(tmp_path: Path, environment: type[Environment], options: Mapping[str, Any], reward: str | None = None):
    settings = {"class_path": f"{environment.__module__}.{environment.__name__}", "init_args": dict(options)}
    (tmp_path / "config.yaml").write_text(json.dumps({"data": {"environment": settings}}))
    return scoring.Scorer(reward, None, scoring.configured_environment(tmp_path / "config.yaml"))


def without_seed(trajectory: Trajectory) -> dict[str, Any]:
    return {name: value for name, value in trajectory.record().items() if name != "seed"}


def test_chance_at_the_beginning_repeats_itself_by_the_seed(tmp_path: Path) -> None:
    options = {"horizon": 2}
    environment = Relay(**options)
    right = played(environment, 12345, lambda state: environment.demonstrate(state, random.Random(0)))
    assert right.total_reward == 2.0  # both turns succeed
    lines = [json.dumps(record) for record in (right.record(), without_seed(right), {**right.record(), "seed": "1"})]
    scored, other, bad = scoring.score_lines(lines, scorer_of(tmp_path, Relay, options))
    assert scored["reward"] == 2.0
    assert "no 'seed'" in other["error"]
    assert "in turn 1 " in other["error"]
    assert "'seed' must be int" in bad["error"]
    lucky = played(environment, 0, lambda state: environment.demonstrate(state, random.Random(0)))
    (result,) = scoring.score_lines([json.dumps(without_seed(lucky))], scorer_of(tmp_path, Relay, options))
    assert result["reward"] == 2.0  # agents are shown what the transcript says


@pytest.mark.parametrize("prompt", ["full", "compact"])
def test_spiders_of_transcripts_without_a_seed_are_those_that_agents_were_shown(tmp_path: Path, prompt: str) -> None:
    options = {"prompt": prompt, "horizon": 2, "num_houses": 1, "num_eval": 1}
    environment = HouseBuild(**options)
    trajectory = played(environment, 12345, lambda state: dict.fromkeys(environment.agent_ids, ""))
    damage = trajectory.turns[0].info["counts"]["damage"]
    assert damage != sum(environment.begin(trajectory.task, random.Random(0)).attacks)
    lines = [json.dumps(record) for record in (trajectory.record(), without_seed(trajectory))]
    for reward in (None, "released"):
        seeded, unseeded = scoring.score_lines(lines, scorer_of(tmp_path, HouseBuild, options, reward))
        assert {**seeded, "line": 2} == unseeded
        if reward is None:
            assert seeded["reward"] == pytest.approx(trajectory.total_reward)


def test_transcripts_that_cannot_be_replayed_say_why(tmp_path: Path) -> None:
    options = {"horizon": 1}
    environment = Relay(**options)
    record = played(environment, 1, lambda state: dict.fromkeys(environment.agent_ids, "")).record()
    (result,) = scoring.score_lines([json.dumps(record)], scorer_of(tmp_path, Relay, options, "released"))
    assert "cannot be made with the reward 'released' (leave out --reward if it has no such form)" in result["error"]
    options = {"num_houses": 1, "num_eval": 1, "horizon": 1}
    house = HouseBuild(**options)
    record = without_seed(played(house, 1, lambda state: dict.fromkeys(house.agent_ids, "")))
    record["turns"][0].update(info=[1], observations={})
    (result,) = scoring.score_lines([json.dumps(record)], scorer_of(tmp_path, HouseBuild, options))
    assert "'info' must be dict, got [1]" in result["error"]


def test_a_transcript_without_its_run_says_what_it_needs(tmp_path: Path) -> None:
    (result,) = score(tmp_path, {"task_id": "x", "turns": []}, status=1)
    assert "config.yaml" in result["error"]


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path / "nothing.jsonl")]) == 2
    assert "cannot be read" in capsys.readouterr().err
