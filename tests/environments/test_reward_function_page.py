"""What docs/reward_function.md shows works as it stands there, the judge with a server on this machine."""

from __future__ import annotations

import json
import random
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from collm import cli
from collm.environments.base import EpisodeFailure
from collm.environments.reward_function import RewardFunctionTask
from curves import scalars
from toy import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reward_function.md").read_text()
BLOCKS = re.findall(r"```(python|json|yaml|bash)\n(.*?)```", PAGE, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_rewards.py").write_text("\n\n".join(blocks("python")))
    (questions,) = blocks("json")
    (tmp_path / "questions.jsonl").write_text(questions)
    (settings,) = blocks("yaml")
    (tmp_path / "questions.yaml").write_text(settings)
    yield tmp_path
    sys.modules.pop("my_rewards", None)


def task(reward: str, **settings: Any) -> RewardFunctionTask:
    templates = {"a": "{question}", "b": "{question}"}
    return RewardFunctionTask(
        **{"dataset": "questions.jsonl", "reward": reward, "templates": templates, "num_eval": 1, **settings}
    )


def run(command: str, *arguments: str) -> int:
    (line,) = blocks("bash")
    given = shlex.split(line.replace("$COLLM", str(REPOSITORY)))
    assert given[:3] == ["python", f"{REPOSITORY}/tools/fit.py", "fit"]
    small = ("--model.policy.max_new_tokens=4", "--data.rollouts_per_epoch=1", "--data.tasks_per_rollout=2")
    ending = ("--trainer.max_epochs=1", "--trainer.accelerator=cpu", *arguments)
    return cli.main(REPOSITORY / "configs" / "base.yaml", [command, *given[3:], *small, *ending])


def test_the_command_trains_two_agents() -> None:
    assert run("fit") == 0
    agents = Path("logs") / "collm" / "version_0" / "agents"
    assert sorted(path.name for path in agents.iterdir()) == ["sceptic", "scholar"]
    assert {"rollout/reward/right", "rollout/reward/long", "eval/return"} <= set(scalars(agents.parent))


def test_a_mistake_in_the_function_ends_the_command_with_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    path = folder / "my_rewards.py"
    path.write_text(path.read_text().replace('fields["answer"].lower() in said', 'fields["anwser"]'))
    assert run("fit") == 2
    message = capsys.readouterr().err
    assert "my_rewards.brevity raised KeyError: 'anwser' (my_rewards.py line 5)" in message
    assert "Traceback" not in message


def test_the_reward_is_what_the_page_says() -> None:
    game = task("my_rewards.brevity", min_reward=-1)
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    step = game.step(state, {"a": "It is mercury", "b": "Venus or so"})
    assert step.terms == {"right": 1.0, "long": -6 / 50}


def test_hints_tell_one_letter_more_each_turn() -> None:
    game = task("my_rewards.brevity", min_reward=-1, feedback="my_rewards.hint", horizon=3)
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    step = game.step(state, {"a": "Venus", "b": "Mars"})
    assert step.observations == dict.fromkeys("ab", "Not yet, after 1 turns. It begins with M.")
    step = game.step(step.state, {"a": "Venus", "b": "Mars"})
    assert step.observations["a"] == "Not yet, after 2 turns. It begins with Me."
    assert game.step(state, {"a": "Mercury!", "b": ""}).terminated


def test_the_function_of_trl_runs_unchanged() -> None:
    game = task("my_rewards.short", templates={"agent": "{question}"})
    states = [game.reset(each, random.Random(0))[0] for each in game.tasks("train")]
    steps = game.step_batch(states, [{"agent": "Mercury"}, {"agent": "Mercury " * 9}])
    assert [step.reward for step in steps] == [1.0, 0.0]


class Judge(BaseHTTPRequestHandler):
    """Grades by the last digit it reads; its first `outages` requests fail."""

    outages = 0
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append({"path": self.path, **body})
        if type(self).outages:
            type(self).outages -= 1
            self.send_error(503)
            return
        grade = re.findall(r"\d", body["messages"][0]["content"])[-1]
        answer = {"choices": [{"message": {"content": f"{grade} of 10"}}], "usage": {"total_tokens": 30}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Judge]]:
    pytest.importorskip("httpx")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Judge, "outages", 0)
    monkeypatch.setattr(Judge, "asked", [])
    yield Judge
    server.shutdown()
    server.server_close()


def test_a_judge_grades_the_episodes_of_a_rollout(judge: type[Judge]) -> None:
    game = task("my_rewards.judged")
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    judge.outages = 1
    steps = game.step_batch([state] * 3, [{"a": "worth", "b": f"about {grade}"} for grade in (3, 8, 5)])
    assert [step.reward for step in steps] == [0.3, 0.8, 0.5]
    assert [step.info for step in steps] == [{"metrics": {"judge_tokens": 30.0}}] * 3
    assert len(judge.asked) == 5  # the trial, three answers, and one that was asked again
    assert judge.asked[-1]["path"] == "/v1/chat/completions"
    assert game.tasks("train")[0].data["question"] in judge.asked[-1]["messages"][0]["content"]


def test_a_judge_that_does_not_answer_fails_the_episode(judge: type[Judge]) -> None:
    game = task("my_rewards.judged", trial=False)
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    judge.outages = 3
    with pytest.raises(EpisodeFailure, match="the judge does not answer: HTTPStatusError") as failure:
        game.step(state, {"a": "", "b": ""})
    assert (failure.value.cause, len(judge.asked)) == ("judge", 3)


def test_a_judge_in_training_is_counted(judge: type[Judge]) -> None:
    assert run("fit", "--data.environment.reward=my_rewards.judged") == 0
    assert scalars(Path("logs") / "collm" / "version_0")["rollout/judge_tokens"] == [30.0]
