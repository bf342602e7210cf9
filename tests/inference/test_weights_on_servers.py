"""Agents that train here and are sampled by servers, which get their weights after every update."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from safetensors.torch import save

from actors import sampled
from collm.errors import ConfigurationError, TrainingError
from collm.inference.actors import Actors
from collm.inference.endpoint import engine
from collm.inference.endpoint.weights import weights_of
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy import Policy
from served import served, team

PROMPT = [5, 6, 7]


def learner(policy: Policy, *urls: str) -> Policy:
    """The agent as a learner that servers sample."""
    policy.spec.engine, policy.spec.endpoint = "endpoint", EndpointSpec(list(urls), trained=True, retries=0)
    return policy


def moved(policy: Policy) -> Policy:
    for weight in policy.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return policy


@pytest.mark.parametrize("parameters", ["separate", "lora"])
def test_servers_answer_with_the_weights_of_the_last_update(parameters: str) -> None:
    torch.manual_seed(0)
    there = team("tiny", parameters, max_new_tokens=6)["a1"]
    here = moved(team("tiny", parameters, max_new_tokens=6)["a1"])
    with served(there, trainable=True) as first, served(there, trainable=True) as second:
        actors = Actors({"a1": learner(here, first, second)})
        answers = []
        for version in (3, 4):
            (expected,) = sampled_here(here, greedy=True)
            with actors.serving(version):
                actions = actors.sample({"a1": [PROMPT] * 4}, torch.Generator().manual_seed(0), True)["a1"]
            for action in actions:
                assert list(action.token_ids) == list(expected.token_ids)
                assert action.log_probs == pytest.approx(list(expected.log_probs), abs=1e-4)
                assert (action.policy_version, action.absent) == (version, "")
            answers.append(expected.log_probs)
            moved(here)
        assert answers[0] != answers[1]


def sampled_here(policy: Policy, greedy: bool) -> list:
    spec, policy.spec.engine = policy.spec, "collm"
    try:
        policy.backbone.eval()
        return sampled(policy, [PROMPT], torch.Generator(), greedy)
    finally:
        spec.engine = "endpoint"


def test_an_answer_of_other_weights_is_refused_and_counted() -> None:
    policy = team("tiny", max_new_tokens=6)["a1"]
    with served(policy, trainable=True) as url:
        actors = Actors({"a1": learner(team("tiny", max_new_tokens=6)["a1"], url)})
        with actors.serving(1):
            body = save(weights_of(policy))  # somebody else's, by the same name of the run
            headers = {"x-collm-version": f"{actors.engines['a1'].run_id}:0"}
            assert httpx.post(f"{url.removesuffix('/v1')}/weights", content=body, headers=headers).status_code == 200
            (action,) = actors.sample({"a1": [PROMPT]}, torch.Generator(), True)["a1"]
        assert (action.absent, action.fatal) == ("stale", True)
        assert actors.take_numbers()["absent/a1"] == [1.0]


def test_weights_that_do_not_fit_change_nothing() -> None:
    policy = team("tiny", max_new_tokens=6)["a1"]
    before = {name: weight.clone() for name, weight in policy.backbone.own_state().items()}
    weights = {name: weight + 1 for name, weight in weights_of(policy).items()}
    fewer = dict(list(weights.items())[1:])
    other = {**weights, next(iter(weights)): torch.zeros(3)}
    with served(policy, trainable=True) as url:
        address = f"{url.removesuffix('/v1')}/weights"
        for content, says in (
            (save(fewer), "1 differ in name or shape"),
            (save(other), "1 differ in name or shape"),
            (save(weights)[:-100], "cannot be read"),
            (b"", "cannot be read"),
        ):
            answer = httpx.post(address, content=content, headers={"x-collm-version": "run:1"})
            assert answer.status_code == 409
            assert says in answer.json()["error"]["message"]
        assert httpx.post(address, content=save(weights)).status_code == 409  # no version
        assert all(weight.equal(before[name]) for name, weight in policy.backbone.own_state().items())


def test_two_runs_at_one_server_and_servers_that_keep_their_weights() -> None:
    policies = [team("tiny", max_new_tokens=6)["a1"] for _ in range(3)]
    with served(policies[0], trainable=True) as url:
        with Actors({"a1": learner(policies[1], url)}).serving(0):
            pass
        second = Actors({"a1": learner(policies[2], url)})
        with pytest.raises(TrainingError, match="another run pushes its weights"), second.serving(0):
            pass
    with served(policies[0]) as url:
        fixed = Actors({"a1": learner(policies[1], url)})
        with pytest.raises(TrainingError, match="status (409|413)"), fixed.serving(0):
            pass


def test_the_first_process_of_a_run_pushes_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [team("tiny", max_new_tokens=6)["a1"] for _ in range(2)]
    with served(team("tiny", max_new_tokens=6)["a1"], trainable=True) as url:
        first, second = (Actors({"a1": learner(policy, url)}) for policy in here)
        run_id = first.engines["a1"].run_id
        with first.serving(2):
            pass
        said = [run_id, "", run_id, "servers are gone"]  # by the first process, at each exchange
        monkeypatch.setattr(engine, "gather_objects", lambda value: [said.pop(0), value])
        monkeypatch.setattr(engine, "rank", lambda: 1)
        monkeypatch.setattr(engine, "push", None)  # which it must not call
        with second.serving(2):
            (action,) = second.sample({"a1": [PROMPT]}, torch.Generator(), True)["a1"]
        assert (action.policy_version, action.absent) == (2, "")
        with pytest.raises(TrainingError, match="servers are gone"), second.serving(3):
            pass


def test_settings_that_cannot_train() -> None:
    for options in ({"protocol": "chat"}, {"late": "silent"}, {"version": "x"}):
        with pytest.raises(ConfigurationError, match="trained needs the tokens that were sampled"):
            EndpointSpec("http://127.0.0.1:9/v1", trained=True, **options).check("endpoint")


def test_a_run_trains_through_servers(
    fit: Callable[..., int], tmp_path: Path, run_folder: Path, tiny_folder: str
) -> None:
    with served(team(tiny_folder)["a1"], trainable=True) as url:
        policy = {"path": tiny_folder, "max_new_tokens": 4, "learning_rate": 1e-3, "engine": "endpoint"}
        policies = {"a1": {**policy, "endpoint": {"url": url, "trained": True}}}
        path = tmp_path / "servers.yaml"
        path.write_text(yaml.safe_dump({"model": {"init_args": {"policies": policies}}}))
        assert fit(f"--config={path}") == 0
        served_now = httpx.get(f"{url}/models").json()["data"][0]["agent"]["version"]
        assert served_now.endswith(":2")  # two updates, and the evaluation after the last
        saved = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert any(name.startswith("backbones.<a1>.") for name in saved["state_dict"])
    lines = (run_folder / "transcripts" / "validate-00000008.jsonl").read_text().splitlines()
    assert all("absent" not in turn for line in lines for turn in json.loads(line)["turns"])
