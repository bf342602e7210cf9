"""Games of mixed teams from the command line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from collm.environments.base import Step
from collm.serving.play import main
from served import served, team
from toy import Toy

_GAMES = "collm.environments.games"
_TOY = {"environment": {"class_path": "toy.Toy"}}


class Broken(Toy):
    """The second task cannot be played.

    Args:
        interrupted: It is stopped by ^C, and not for want of a file.
    """

    def __init__(self, interrupted: bool = False):
        super().__init__(num_eval=3)
        self.interrupted = interrupted

    def step(self, state: tuple, joint_action: Mapping[str, str]) -> Step:
        if state[0].data["index"] == 1:
            if self.interrupted:
                raise KeyboardInterrupt
            Path("missing.json").read_text()
        return super().step(state, joint_action)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    policies = team("tiny", max_new_tokens=6)
    for agent_id, policy in policies.items():
        policy.save(tmp_path / "run" / "agents" / agent_id)
    config = {"data": {"environment": {"class_path": "toy.Toy", "init_args": {"num_eval": 3}}}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run"


def transcripts(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "transcripts.jsonl").read_text().splitlines()]


def test_the_agents_of_a_run_play(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [str(run), "--out", str(tmp_path / "out"), "--episodes_per_task", "2", "--episodes_at_once", "4"]
    assert main(args) == 0
    played = transcripts(tmp_path / "out")
    assert [one["task_id"] for one in played] == ["eval_0", "eval_0", "eval_1", "eval_1", "eval_2", "eval_2"]
    assert len({one["turns"][0]["actions"]["a1"] for one in played}) > 1  # sampled
    assert "6 episodes in" in capsys.readouterr().out


def test_a_person_a_script_and_an_endpoint_play_together(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = team("tiny", max_new_tokens=6)["a1"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\nline 7\n\nsecond\n\n"))
    with served(policy) as url:
        args = [str(run), "--num_tasks", "1", "--agent", f"a1={url}#a1", "--agent", "a2=human"]
        assert main([*args, "--out", str(tmp_path / "out")]) == 0
    (played,) = transcripts(tmp_path / "out")
    assert [turn["actions"]["a2"] for turn in played["turns"]] == ["first\nline 7", "second"]
    assert played["turns"][0]["actions"]["a1"]
    # as it was trained to write, which its server says
    assert all(len(policy.tokenizer(turn["actions"]["a1"]).input_ids) <= 6 for turn in played["turns"])
    said = capsys.readouterr().out
    assert "--- a2\ntask 0 a2" in said
    assert "absent/a1: 0" in said
    assert "latency/a1/p50" in said
    assert main([str(run), "--agent", "a1=text:7", "--agent", "a2=text:8", "--out", str(tmp_path / "text")]) == 0
    assert {turn["reward"] for one in transcripts(tmp_path / "text") for turn in one["turns"]} == {1.0}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--agent", "a3=human"], "a3 is no agent of the environment, which has a1, a2"),
        (["--agent", "a1=http://127.0.0.1:9/v1"], "start it, or give another url"),
        (["--agent", "a1=nowhere"], "'nowhere' holds no exported agents"),
        (["--split", "all"], "split is 'all'"),
        (["--num_tasks", "0"], "num_tasks is 0"),
    ],
)
def test_teams_that_cannot_play(run: Path, args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *args]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_was_played_is_kept(
    tmp_path: Path, interrupted: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"class_path": "test_play.Broken", "init_args": {"interrupted": interrupted}}
    (tmp_path / "game.yaml").write_text(yaml.safe_dump({"data": {"environment": environment}}))
    args = ["game.yaml", "--agent", "a1=text:7", "--agent", "a2=text:8", "--out", "out", "--episodes_at_once", "1"]
    if interrupted:
        assert main(args) == 130
        assert "transcripts.jsonl of --out has the batches that had ended" in capsys.readouterr().err
    else:
        with pytest.raises(FileNotFoundError, match=r"missing\.json"):
            main(args)
    assert [one["task_id"] for one in transcripts(tmp_path / "out")] == ["eval_0"]


def test_transcripts_that_cannot_be_written(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    args = ["--agent", "a1=text:7", "--agent", "a2=text:8", "--out", str(tmp_path / "file")]
    assert main([str(run), *args]) == 1
    assert "transcripts.jsonl could not be written: " in capsys.readouterr().err


def test_the_file_of_a_run_that_trains_through_servers_plays(run: Path, tmp_path: Path) -> None:
    policies = team("tiny", max_new_tokens=6)
    with served(policies["a1"]) as first, served(policies["a2"]) as second:
        settings = {"path": "tiny", "max_new_tokens": 6, "engine": "endpoint"}
        given = {
            name: {**settings, "endpoint": {"url": url, "trained": True}}
            for name, url in (("a1", first), ("a2", second))
        }
        path = tmp_path / "servers.yaml"
        path.write_text(yaml.safe_dump({"model": {"init_args": {"policies": given}}}))
        args = ["--endpoints", str(path), "--num_tasks", "1", "--out", str(tmp_path / "out")]
        assert main([str(run), *args]) == 0
    assert len(transcripts(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": {"class_path": "CoLLMCC"}}, "has no model.init_args.policies; give an endpoints.yaml"),
        ({"model": None}, "has no model.init_args.policies"),
        ({"a1": {"path": "tiny"}}, "the engine of 'a1' is None; only agents with `engine: endpoint`"),
        ({"a1": None}, "the engine of 'a1' is None"),
        ({"a1": {"engine": "collm"}}, "the engine of 'a1' is 'collm'"),
        ({"a1": {"engine": "endpoint", "path": "tiny"}}, "no policy of 'a1'.endpoint.url says where it is"),
        ({"a1": {"engine": "endpoint", "path": "tiny", "endpoint": "x"}}, "the settings of a policy are wrong"),
    ],
)
def test_files_of_endpoints_that_are_none(
    run: Path, tmp_path: Path, content: dict, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = content if "model" in content else {"model": {"init_args": {"policies": content}}}
    (tmp_path / "servers.yaml").write_text(yaml.safe_dump(content))
    assert main([str(run), "--endpoints", str(tmp_path / "servers.yaml")]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "the configuration has no data.environment"),
        ("x", "data is 'x'; it has settings"),
        (
            {"environment": {"class_path": "toy.Toy", "init_args": {"horizon": "many"}}},
            "data.environment.horizon: Expected a int. Got value: many",
        ),
        ({"environment": {"class_path": "toy.Toy", "init_args": {"horizn": 2}}}, "did you mean 'horizon'?"),
        (
            {"environment": {"class_path": f"{_GAMES}.relay.Relay", "init_args": {"horizon": 0}}},
            "data.environment: Relay.horizon is 0; it must be a whole number",
        ),
        ({"environment": {"class_path": "toy.Nope"}}, "'toy.Nope' is not a class that fits here"),
        ({**_TOY, "eval_sampler": "collm.samplers.tree.Tree"}, "cannot take part in a Tree"),
        ({**_TOY, "eval_sampler": "collm.samplers.counterfactual.Counterfactual"}, "take part in a Counterfactual"),
    ],
)
def test_configurations_that_cannot_be_played(
    tmp_path: Path, data: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "game.yaml").write_text(yaml.safe_dump({"data": data}))
    args = [str(tmp_path / "game.yaml"), "--agent", "a1=text:7", "--agent", "a2=text:8"]
    assert main([*args, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
