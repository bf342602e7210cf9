"""Servers follow `allowed_words` and ends of responses that clients ask for, or refuse them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch

from collm.errors import ConfigurationError
from collm.inference.actors import Actors, check_engines
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.remote import remote_policy
from on_policy import log_ratios
from served import served, team

WORDS = ["fill", "x", "0", "1"]
PROMPTS = [[7, 8, 9], [20], [30, 31, 32]] * 3


def answers(policy: Policy) -> list[Any]:
    actors = Actors({"a1": policy})
    with actors.serving(1):
        return actors.sample({"a1": PROMPTS}, torch.Generator().manual_seed(0), False)["a1"]


def drawn(actions: list[Any]) -> set[int]:
    return {token for action in actions for token in action.token_ids}


def endpoint(url: str, **options: Any) -> PolicySpec:
    return PolicySpec(path="tiny", max_new_tokens=7, engine="endpoint", endpoint=EndpointSpec(url), **options)


@pytest.mark.parametrize("backend", ["collm", "transformers"])
def test_words_of_the_client_count(backend: str) -> None:
    with served(team("tiny")["a1"], backend) as url:  # which knows of no such words
        spec = endpoint(url, allowed_words=WORDS)
        check_engines({"a1": spec})
        assert drawn(answers(remote_policy("a1", spec))) <= set(spec.allowed_ids())
        assert len(drawn(answers(remote_policy("a1", endpoint(url))))) > 4


@pytest.mark.parametrize(("here", "there"), [(WORDS, None), (WORDS, WORDS[:2]), (None, WORDS)])
def test_what_a_learner_samples_is_what_it_trains(here: list[str] | None, there: list[str] | None) -> None:
    with served(team("tiny", allowed_words=there)["a1"], trainable=True) as url:
        policy = team("tiny", max_new_tokens=7, allowed_words=here)["a1"]
        policy.spec.engine, policy.spec.endpoint = "endpoint", EndpointSpec(url, trained=True, retries=0)
        actions = answers(policy)
    assert {action.absent for action in actions} == {""}
    assert log_ratios(policy, actions).abs().max() < 1e-5
    assert (len(drawn(actions)) > 4) == (here is None)


def test_a_server_that_does_not_follow_them_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(team("tiny")["a1"]) as url:
        policy = remote_policy("a1", endpoint(url, allowed_words=WORDS))
        body = Actors({"a1": policy}).engines["a1"].mates["a1"].body([5], 0, False)
        assert (body["allowed_token_ids"], body["stop_token_ids"]) == (policy.allowed_ids, sorted(policy.eos_ids))
        monkeypatch.setattr("collm.serving.app.Service.allowed", lambda self, given: None)
        assert {action.absent for action in answers(policy)} == {"not_allowed"}


def test_other_ends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = team("tiny")["a1"]
    with served(policy) as url:
        ends = sorted(policy.eos_ids)
        for given, status in ((ends, 200), (ends[::-1], 200), ([*ends, 5], 400), ([], 400)):
            answer = httpx.post(f"{url}/completions", json={"prompt": [5], "stop_token_ids": given})
            assert answer.status_code == status
        assert f"responses of this agent end with {ends} only" in answer.json()["error"]["message"]
        for ids in ([], [-1], [10**6]):
            answer = httpx.post(f"{url}/completions", json={"prompt": [5], "allowed_token_ids": ids})
            assert (answer.status_code, "allowed_token_ids must be" in answer.text) == (400, True)
        monkeypatch.setattr("collm.inference.endpoint.engine.end_tokens", lambda path: {5})
        with pytest.raises(ConfigurationError, match="stop_token_ids is"):
            check_engines({"a1": endpoint(url)})
