"""Agents that train here and are sampled by vLLM's own servers, the real ones: see docs/engines.md for the command."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save

from actors import sampled
from collm.errors import TrainingError
from collm.inference.actors import Actors
from collm.inference.endpoint.engine import EndpointEngine
from collm.inference.endpoint.weights import weights_of
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy import Policy
from collm.models.tiny import build_tiny
from collm.serving.command import trainable_arguments, vllm, vllm_variables
from collm.serving.processes import Server, free_ports, serving
from on_policy import CUTS, log_ratios
from served import team

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: docs/engines.md"),
]
HOST = "127.0.0.1"
PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7, 10, 11]]


@contextmanager
def two_servers(folder: Path, logs: Path) -> Iterator[list[str]]:
    """Addresses of two servers of one agent."""
    program = f"{sys.executable} -m vllm.entrypoints.launchers.api_server.entry"
    servers, urls = [], []
    for port in free_ports(HOST, 2):
        command = vllm("a1", folder, HOST, port, program, [*trainable_arguments(folder), "--enforce-eager"])
        servers.append(Server(str(port), command, f"http://{HOST}:{port}/health", vllm_variables(folder, None, True)))
        urls.append(f"http://{HOST}:{port}/v1")
    with serving(servers, logs, patience=1800):
        yield urls


def answers_here(policy: Policy) -> list[list[int]]:
    policy.spec.engine = "transformers"
    policy.backbone.eval()
    try:
        return [list(one.token_ids) for one in sampled(policy, PROMPTS, torch.Generator(), True)]
    finally:
        policy.spec.engine = "endpoint"


def check_cut(policy: Policy, actors: Actors, version: int, cut: dict) -> None:
    """What trains is what was sampled where top-p, top-k or a shortest length cut it."""
    spec = policy.spec
    policy.spec = replace(spec, **cut)
    try:
        EndpointEngine.check("policy of 'a1'", policy.spec, "a1")
        with actors.serving(version):
            actions = actors.sample({"a1": PROMPTS * 2}, torch.Generator().manual_seed(2), False)["a1"]
        assert {one.absent for one in actions} == {""}
        assert log_ratios(policy, actions).abs().max() < 1e-3
        for one in actions:
            kept = one.sampling_mask.dense(policy.backbone.vocabulary_size)
            assert not kept.all(1)[: max(1, policy.spec.min_new_tokens)].any()
            assert len(one.token_ids) >= policy.spec.min_new_tokens
    finally:
        policy.spec = spec


@pytest.mark.parametrize("parameters", ["separate", "lora"])
def test_two_servers_answer_with_the_weights_of_the_last_update(tmp_path: Path, parameters: str) -> None:
    base = tmp_path / "heads_of_32"
    build_tiny(base, hidden_size=64, num_layers=2, num_heads=2, context=256)
    policy = team(str(base), parameters, max_new_tokens=8)["a1"]
    policy.save(tmp_path / "a1")
    with two_servers(tmp_path / "a1", tmp_path / "logs") as urls:
        policy.spec.engine, policy.spec.endpoint = "endpoint", EndpointSpec(urls, trained=True, retries=0)
        actors = Actors({"a1": policy})
        before: list[list[int]] = []
        for version in (3, 4):
            for weight in policy.parameters():
                weight.data += 0.05 * torch.randn_like(weight)
            with actors.serving(version):
                greedy = actors.sample({"a1": PROMPTS * 2}, torch.Generator().manual_seed(0), True)["a1"]
                drawn, again = (
                    actors.sample({"a1": PROMPTS * 2}, torch.Generator().manual_seed(1), False)["a1"] for _ in range(2)
                )
            found = [list(one.token_ids) for one in greedy]
            assert found == answers_here(policy) * 2
            assert found != before
            before = found
            assert {(one.policy_version, one.absent) for one in [*greedy, *drawn]} == {(version, "")}
            assert [one.token_ids for one in drawn] == [one.token_ids for one in again]
            assert log_ratios(policy, drawn).abs().max() < 1e-3
            for cut in CUTS:
                check_cut(policy, actors, version, cut)
        # an answer of other weights, under the name of the same run
        headers = {"x-collm-version": f"{actors.engines['a1'].run_id}:3"}
        with actors.serving(5):
            for url in urls:
                body = save(weights_of(policy))
                assert (
                    httpx.post(f"{url.removesuffix('/v1')}/weights", content=body, headers=headers).status_code == 200
                )
            (stale,) = actors.sample({"a1": PROMPTS[:1]}, torch.Generator(), True)["a1"]
        assert (stale.absent, stale.fatal) == ("stale", True)
        # what cannot be followed is an answer, and the server lives
        body = {"model": "a1", "prompt": PROMPTS[0], "max_tokens": 2, "return_sampling_mask": True, "top_p": 7}
        assert httpx.post(f"{urls[0]}/completions", json=body).status_code == 400
        assert "sampling_mask" in httpx.post(f"{urls[0]}/completions", json={**body, "top_p": 0.5}).json()["choices"][0]
        other = Actors({"a1": policy})
        with pytest.raises(TrainingError, match="another run pushes its weights"), other.serving(0):
            pass
