"""Servers say which tokens top-p, top-k or a shortest length kept, so that what trains is what was sampled there."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from collm.errors import ConfigurationError
from collm.inference.actors import Actors, check_engines
from collm.inference.endpoint.masks import packed, unpacked
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.sampling_mask import SamplingMask
from collm.studies.runs import read_run
from faulty import Faulty
from on_policy import CUTS, log_ratios
from served import listening, served, team

PROMPTS = [[7, 8, 9], [20], [30, 31, 32, 33, 34, 35, 36], [7, 8, 9]]


def learner(url: str, **options: Any) -> Policy:
    """The first agent of a team, which servers sample."""
    policy = team("tiny", max_new_tokens=7, engine="endpoint", **options)["a1"]
    policy.spec.endpoint = EndpointSpec(url, trained=True, retries=0)
    return policy


@pytest.mark.parametrize("backend", ["collm", "transformers"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_ratio_is_one_before_the_first_step(backend: str, cut: dict) -> None:
    there = team("tiny")["a1"]  # which knows nothing of the settings: requests say all
    with served(there, backend, trainable=True) as url:
        policy = learner(url, **cut)
        check_engines({"a1": policy.spec})
        actors = Actors({"a1": policy})
        with actors.serving(1):
            actions = actors.sample({"a1": PROMPTS * 2}, torch.Generator().manual_seed(0), False)["a1"]
            greedy = actors.sample({"a1": PROMPTS[:1]}, torch.Generator().manual_seed(0), True)["a1"]
    assert {action.absent for action in [*actions, *greedy]} == {""}
    assert [action.sampling_mask for action in greedy] == [None]
    assert log_ratios(policy, actions).abs().max() < 1e-5
    for action in actions:
        kept = action.sampling_mask.dense(policy.backbone.vocabulary_size)
        assert kept[range(len(kept)), list(action.token_ids)].all()
        assert not kept.all(1)[: max(1, policy.spec.min_new_tokens)].any()
        if "top_k" in cut:
            assert kept.sum(1).max() <= cut["top_k"]
        if "min_new_tokens" in cut:
            assert len(action.token_ids) >= cut["min_new_tokens"]
    for action in actions:  # without its sets the ratio would be another
        object.__setattr__(action, "sampling_mask", None)
    assert log_ratios(policy, actions).abs().max() > 1e-4


def test_a_run_with_top_p_trains_what_servers_sampled(
    fit: Callable[..., int], tmp_path: Path, run_folder: Path, tiny_folder: str
) -> None:
    with (
        served(team(tiny_folder)["a1"], trainable=True) as first,
        served(team(tiny_folder)["a2"], trainable=True) as second,
    ):
        policy = {"path": tiny_folder, "max_new_tokens": 4, "learning_rate": 1e-3, "engine": "endpoint", "top_p": 0.8}
        policies = {
            name: {**policy, "endpoint": {"url": url, "trained": True}} for name, url in (("a1", first), ("a2", second))
        }
        path = tmp_path / "servers.yaml"
        path.write_text(yaml.safe_dump({"model": {"init_args": {"policies": policies}}}))
        assert fit(f"--config={path}") == 0
    logged = read_run(run_folder).scalars
    for name in ("a1", "a2"):
        assert len(logged[f"policy/log_prob_drift/{name}"]) == 2
        assert max(map(abs, logged[f"policy/log_prob_drift/{name}"].values())) < 1e-5
        assert list(logged[f"policy/sampler_weight/{name}"].values()) == pytest.approx([1.0, 1.0], abs=1e-5)


class Silent(Faulty):
    """A server that says nothing about sets."""

    @staticmethod
    def broken(kind: str, status: int, content: bytes) -> tuple[int, bytes]:
        parsed = json.loads(content)
        if "choices" in parsed:
            parsed["choices"][0].pop("sampling_mask", None)
        return status, json.dumps(parsed).encode()


def test_a_server_that_gives_no_sets_is_refused_before_weights_load() -> None:
    with served(team("tiny")["a1"], trainable=True) as url, listening(Silent(url, [""])) as proxy:
        spec = PolicySpec(path="tiny", engine="endpoint", top_p=0.9)
        spec.endpoint = EndpointSpec(f"{proxy}/v1", trained=True)
        with pytest.raises(ConfigurationError, match="no_sampling_mask: it does not say which tokens top_p, top_k or"):
            check_engines({"a1": spec})
        spec.top_p = 1.0
        check_engines({"a1": spec})


def test_log_probabilities_before_the_cut_are_refused() -> None:
    spec = PolicySpec(path="tiny", engine="endpoint", endpoint=EndpointSpec("http://x/v1", trained=True), top_p=0.9)
    spec.check("policy")
    spec.trained_policy = "uncut"
    with pytest.raises(ConfigurationError, match="trained_policy is 'uncut', whose log-probabilities servers do not"):
        spec.check("policy")


SETS = SamplingMask(torch.tensor([2, 5, 9, 1], dtype=torch.int32), torch.tensor([3, 0, -1]))
"""Of the tokens 5, 7 and 0: one of 2, 5 and 9; any; any but 1."""


def test_sets_arrive_as_they_were_sent() -> None:
    again = unpacked(json.loads(json.dumps(packed(SETS))), [5, 7, 0], 10)
    assert again.ids.tolist() == SETS.ids.tolist()
    assert again.counts.tolist() == SETS.counts.tolist()
    assert again.ids.dtype == torch.int32
    whole = unpacked(packed(SamplingMask.uncut(2)), [4, 4], 10)
    assert whole.dense(10).all()


def ids(*steps: int) -> str:
    return base64.b64encode(zlib.compress(torch.tensor(steps, dtype=torch.int32).numpy().tobytes())).decode()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "no counts and ids"),
        ([1], "no counts and ids"),
        ({"counts": [3, 0, -1]}, "no counts and ids"),
        ({"counts": [3, 0], "ids": ids(2, 3, 4)}, "not one for each token"),
        ({"counts": [3, 0, -10], "ids": ids(2, 3, 4)}, "not one for each token"),
        ({"counts": [3, 0, True], "ids": ids(2, 3, 4)}, "not one for each token"),
        ({"counts": [3, 0, -1], "ids": "é"}, "cannot be read"),
        ({"counts": [3, 0, -1], "ids": "AAAA"}, "cannot be read"),
        ({"counts": [3, 0, -1], "ids": ids(2, 3, 4)}, "not as many as its counts say"),
        ({"counts": [3, 0, -1], "ids": ids(*[0] * 10**6)}, "not as many as its counts say"),
        ({"counts": [3, 0, -1], "ids": ids(2, 3, 4, 1)}, "not tokens of this model"),
        ({"counts": [3, 0, -1], "ids": ids(2, 3, 4, -10)}, "not tokens of this model"),
        ({"counts": [3, 0, -1], "ids": ids(2, 4, 3, -8)}, "a token is not in the set"),  # 5 is none of 2, 6 and 9
        ({"counts": [3, 0, -1], "ids": ids(2, 3, 4, -9)}, "a token is not in the set"),  # 0 is the one that was cut
    ],
)
def test_sets_that_cannot_be(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unpacked(given, [5, 7, 0], 10)
