"""The engine whose responses come from servers, several for each agent, and to which episodes come one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import torch

from collm.errors import ConfigurationError, TrainingError
from collm.inference.base import Engine, Prompts
from collm.inference.endpoint.loop import Loop, run
from collm.inference.endpoint.mate import Mate, key_of
from collm.inference.endpoint.weights import push, weights_of
from collm.models.endpoint_spec import EndpointSpec
from collm.models.loading import load_tokenizer
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.remote import end_tokens
from collm.runtime.collectives import gather_objects, rank
from collm.runtime.progress import progress
from collm.trajectory import Action

_PROBE = "Build x=1, <b>'é' 日本"


class EndpointEngine(Engine):
    """Asks servers for the responses of agents whose weights are there."""

    elsewhere = True

    def __init__(self, policies: Mapping[str, Policy]):
        super().__init__(policies)
        self.run_id = uuid4().hex  # servers take weights of one run only
        self.mates = {agent_id: Mate(policy) for agent_id, policy in policies.items()}
        self.answers_at_once = sum(mate.endpoint.concurrency for mate in self.mates.values())
        self._loop: Loop | None = None  # from `sync` to `rest`
        self._answers = 0  # since `sync`

    def sync(self, version: int, keep_cache: bool = False) -> None:
        """Connect, and push the weights of agents that train here where servers have older ones; see `Engine.sync`.

        One of the processes of a run pushes, and the others wait for it.

        Raises:
            TrainingError: A server did not take them.
        """
        super().sync(version, keep_cache)
        self._answers = 0
        for mate in self.mates.values():
            if mate.endpoint.trained:
                self.run_id = gather_objects(self.run_id)[0]
                self.push(mate, version)
        self._loop = Loop()
        self._loop.run(self._connect())

    def push(self, mate: Mate, version: int) -> None:
        """Give the weights of an agent to its servers, unless they have them."""
        name, problem, cause = f"{self.run_id}:{version}", "", None
        weights = weights_of(mate.policy) if mate.wanted != name else {}
        if weights and rank() == 0:
            try:
                run(push(mate.endpoint.urls, key_of(mate.endpoint), mate.policy.agent_id, weights, name))
            except Exception as error:  # whatever it is, or the others would wait for this process
                problem = str(error) if isinstance(error, TrainingError) else f"weights were not pushed: {error!r}"
                cause = error
        if problem := gather_objects(problem)[0]:  # on all, and none asks before the servers have them
            raise TrainingError(problem) from cause
        mate.wanted, mate.policy_version = name, version

    async def _connect(self) -> None:
        from collm.inference.endpoint.client import connection

        for mate in self.mates.values():
            mate.open(connection)

    async def _disconnect(self) -> None:
        await asyncio.gather(*(mate.client.aclose() for mate in self.mates.values()))

    def rest(self) -> None:
        """Disconnect; what still waits for answers is cancelled."""
        if self._loop is not None:
            loop, self._loop = self._loop, None
            loop.run(self._disconnect())
            loop.close()

    @classmethod
    def check(cls, name: str, spec: PolicySpec, agent_id: str) -> None:
        """Refuse servers that are down, or have another model or tokenizer; see `Engine.check`."""
        try:
            from collm.inference.endpoint.client import Fault, introduced
        except ImportError as error:
            raise ConfigurationError(
                f'{name}.engine: endpoint needs {error.name}: pip install "collm[serve]".'
            ) from error
        endpoint, probe = spec.endpoint, {}
        assert endpoint is not None  # the policy's own check saw to it
        if not spec.knows_text_only:
            tokenizer = load_tokenizer(spec.path)
            ids = list(tokenizer(_PROBE, add_special_tokens=False).input_ids)
            more: dict[str, Any] = {}
            if endpoint.trained and spec.cuts:
                more = {"top_p": spec.top_p, "top_k": spec.top_k, "min_tokens": min(spec.min_new_tokens, 1)}
                more["return_sampling_mask"] = True
            if spec.is_remote:
                more["stop_token_ids"] = sorted(end_tokens(spec.path) | {tokenizer.eos_token_id})
            if (allowed := spec.allowed_ids()) is not None:
                more["allowed_token_ids"] = allowed
            probe = {"text": _PROBE, "ids": ids, "vocabulary": len(tokenizer), "more": more}
        try:
            run(introduced(endpoint.urls, key_of(endpoint), endpoint.model or agent_id, spec.knows_text_only, probe))
        except Fault as fault:
            raise ConfigurationError(f"{name}.endpoint: {fault}.") from fault

    def generate(
        self, prompts: Mapping[str, Prompts], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """One response to each prompt; see `Engine.generate`. Several threads may call it at the same time."""
        if self._loop is None:
            raise RuntimeError("servers are asked between `sync` and `rest` only.")
        asked = [(self.mates[agent_id], prompt) for agent_id, own in prompts.items() for prompt in own]
        seeds = torch.randint(2**31, (len(asked),), generator=generator, device=generator.device).tolist()

        async def answers() -> list[Action]:
            work = (self._answer(mate, prompt, seed, greedy) for (mate, prompt), seed in zip(asked, seeds, strict=True))
            return list(await asyncio.gather(*work))

        actions = iter(self._loop.run(answers()))
        return {agent_id: [next(actions) for _ in own] for agent_id, own in prompts.items()}

    async def _answer(self, mate: Mate, prompt: Any, seed: int, greedy: bool) -> Action:
        action = await mate.answer(prompt, seed, greedy)
        self._answers += 1
        progress.tell("answer {}", self._answers)
        return action

    def take_numbers(self) -> dict[str, list[float]]:
        """Answers that did not come, retries, and seconds of those that did; see `Engine.take_numbers`."""
        taken: dict[str, list[float]] = {}
        for agent_id, mate in self.mates.items():
            taken |= {f"{kind}/{agent_id}": values for kind, values in mate.numbers.items() if values}
            mate.clear()
        return taken


def described(endpoint: EndpointSpec, model: str) -> dict[str, Any]:
    """What the first server says of an agent of this project; empty for other models, and where it says nothing."""
    from collm.inference.endpoint.client import Fault, described

    try:
        return run(described(endpoint.urls[0], key_of(endpoint), model))
    except (Fault, asyncio.TimeoutError, TimeoutError):  # the engine's own check says what is wrong
        return {}
