"""Training beside mates that do not learn: frozen ones, and ones that servers answer for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from collm.algorithms.behavior_cloning import BehaviorCloning
from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.collm_dc_shared import CoLLMDCShared
from collm.errors import ConfigurationError
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy_spec import PolicySpec
from served import served, team

Fit = Callable[..., int]


def with_mate(tmp_path: Path, **mate: Any) -> str:
    path = tmp_path / "mate.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"policies": {"a2": {"max_new_tokens": 4, **mate}}}}}))
    return f"--config={path}"


def weights_of(run_folder: Path) -> dict[str, Any]:
    return torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_frozen_mate_stays_as_it_is(fit: Fit, tmp_path: Path, run_folder: Path, tiny_folder: str) -> None:
    assert fit(with_mate(tmp_path, path=tiny_folder, frozen=True), "--trainer.max_epochs=1") == 0
    saved = weights_of(run_folder)
    assert any(name.startswith("backbones.<a1>.") for name in saved["state_dict"])
    assert not any(name.startswith("backbones.<a2>.") for name in saved["state_dict"])
    assert (saved["collm"]["frozen"], saved["collm"]["endpoints"]) == (["a2"], {})
    assert len(saved["optimizer_states"]) == 2  # of a1 and the critic
    from transformers import AutoModelForCausalLM

    before, after = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny_folder, run_folder / "agents" / "a2")
    )
    assert all(weight.equal(before[name]) for name, weight in after.items())


@pytest.mark.parametrize("protocol", ["completions", "chat"])
def test_one_agent_learns_with_a_mate_elsewhere(fit: Fit, tmp_path: Path, run_folder: Path, protocol: str) -> None:
    with served(team("tiny")["a2"]) as url:
        mate = {"path": "tiny", "engine": "endpoint", "endpoint": {"url": url, "protocol": protocol}}
        assert fit(with_mate(tmp_path, **mate), "--trainer.max_epochs=1") == 0
    saved = weights_of(run_folder)
    assert saved["collm"]["endpoints"] == {"a2": [url]}
    assert not any(name.startswith("backbones.<a2>.") for name in saved["state_dict"])
    assert sorted(path.name for path in (run_folder / "agents").iterdir()) == ["a1"]
    lines = "".join(path.read_text() for path in (run_folder / "transcripts").iterdir())
    assert "a2" in lines
    assert "absent" not in lines


def test_several_steps_need_nothing_of_mates_that_do_not_learn(fit: Fit, tmp_path: Path, run_folder: Path) -> None:
    """The log-probabilities that corrections of samplers compare with are those of agents that learn."""
    with served(team("tiny")["a2"]) as url:
        mate = {"path": "tiny", "engine": "endpoint", "endpoint": {"url": url}}
        assert fit(with_mate(tmp_path, **mate), "--model.num_epochs=2", "--trainer.max_epochs=1") == 0
    assert len(weights_of(run_folder)["optimizer_states"]) == 2


def test_a_trained_agent_is_evaluated_with_a_mate_elsewhere(fit: Fit, tmp_path: Path, run_folder: Path) -> None:
    """Its checkpoint also has the mate, whose weights and learning rate nobody needs here."""
    assert fit("--trainer.max_epochs=1") == 0
    given = ("--data.eval_greedy=true", f"--ckpt_path={run_folder / 'checkpoints' / 'last.ckpt'}")
    assert fit(*given, command="validate") == 0
    with served(team("tiny")["a2"]) as url:
        mate = {"path": "tiny", "engine": "endpoint", "endpoint": {"url": url}}
        assert fit(with_mate(tmp_path, **mate), *given, command="validate") == 0
    first_actions = []
    for version in ("version_1", "version_2"):
        (path,) = (run_folder.with_name(version) / "transcripts").iterdir()
        turns = [json.loads(line)["turns"][0] for line in path.read_text().splitlines()]
        first_actions.append([turn["actions"]["a1"] for turn in turns])
    assert first_actions[0] == first_actions[1]


def test_a_mate_that_is_down_stops_a_run_before_it_begins(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    mate = {"path": "tiny", "engine": "endpoint", "endpoint": {"url": "http://127.0.0.1:9/v1"}}
    assert fit(with_mate(tmp_path, **mate)) == 2
    assert "http://127.0.0.1:9/v1 cannot be used (unreachable" in capsys.readouterr().err


def test_a_run_in_which_nobody_learns(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_folder: str
) -> None:
    assert fit("--model.policy.frozen=true") == 2
    assert "no agent learns" in capsys.readouterr().err


def test_servers_that_nobody_asks_are_refused(tiny_folder: str) -> None:
    with pytest.raises(ConfigurationError, match=r"http://x/v1.*engine is 'collm', which asks no server"):
        PolicySpec(path=tiny_folder, endpoint=EndpointSpec("http://x/v1")).check("policy")


@pytest.mark.parametrize("mate", [{"frozen": True}, {"engine": "endpoint", "endpoint": EndpointSpec("http://x/v1")}])
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [(CoLLMDCShared, {}), (BehaviorCloning, {}), (CoLLMCC, {"parameters": "shared"})],
)
def test_algorithms_in_which_all_have_to_learn_refuse(
    algorithm: type, options: dict, mate: dict, tiny_folder: str, no_weights: None
) -> None:
    specs = {"policy": PolicySpec(path=tiny_folder, max_new_tokens=4)}
    specs["policies"] = {"a2": PolicySpec(path=tiny_folder, max_new_tokens=4, **mate)}
    with pytest.raises(ConfigurationError, match="all learn|are endpoints|policies differ"):
        algorithm(agent_ids=["a1", "a2"], **specs, **options)
