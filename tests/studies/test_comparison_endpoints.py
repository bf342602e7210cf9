"""A team of endpoints among the entries of a comparison: the same returns as with weights here, and what it sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from collm.studies.comparison import Entry, compare
from served import served, team
from toy import REPOSITORY, toy_config


def policies(**given: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"init_args": {"policies": given}}}


def remote(url: str, **endpoint: Any) -> dict[str, Any]:
    return {"path": "tiny", "max_new_tokens": 4, "engine": "endpoint", "endpoint": {"url": url, **endpoint}}


@pytest.mark.slow
def test_a_team_of_endpoints_is_compared_with_the_same_weights_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    agents = team("tiny")
    for name, policy in agents.items():
        policy.save(tmp_path / name)
    local = {name: {"path": str(tmp_path / name), "max_new_tokens": 4} for name in agents}
    Path("toy.yaml").write_text(yaml.safe_dump(toy_config("tiny")))
    with served(agents["a1"]) as first, served(agents["a2"]) as second:
        Path("endpoints.yaml").write_text(yaml.safe_dump(policies(a1=remote(first), a2=remote(second))))
        entries = [
            Entry("Here", "toy.yaml", None, policies(**local)),
            Entry("Away", ["toy.yaml", "endpoints.yaml"]),
            Entry("Half", "toy.yaml", None, policies(a1=local["a1"], a2=remote(second, protocol="chat"))),
        ]
        base = str(REPOSITORY / "configs" / "base.yaml")
        compare(entries, "out", 2, timed_episodes=1, greedy=True, figures=False, default_config=base)
    here, away, half = (row["cells"] for row in json.loads(Path("out/table.json").read_text())["table"])
    assert here["return"] == away["return"] == half["return"]
    assert here["cost"] == away["cost"]
    assert away["tokens_per_second"][0] > 0
    assert not half.keys() & {"cost", "tokens_per_second"}  # a chat says nothing about tokens
    assert half["turn_seconds"][0] > 0
    assert "wire_bytes" not in here
    assert 500 < half["wire_bytes"][0] < away["wire_bytes"][0]  # two turns of one agent, and of both
    assert "bytes on the wire" in capsys.readouterr().out
