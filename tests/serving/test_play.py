"""Games of mixed teams from the command line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from collm.serving.play import main
from served import served, team


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
