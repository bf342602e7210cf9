"""The engine whose responses come from servers, several for each agent, and to which episodes come one by one."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from collm.errors import ConfigurationError, TrainingError
from collm.inference.base import Engine, Prompts
from collm.inference.endpoint.latency import Latency
from collm.inference.endpoint.loop import Loop, run
from collm.inference.endpoint.weights import push
from collm.models.endpoint_spec import EndpointSpec
from collm.models.loading import load_tokenizer
from collm.models.policy import Policy, Response
from collm.models.policy_spec import PolicySpec
from collm.runtime.collectives import gather_objects, rank
from collm.runtime.progress import progress
from collm.trajectory import Action

if TYPE_CHECKING:  # httpx is an extra
    from collm.inference.endpoint.client import Traffic

_BYTES = 100_000  # of an answer beside its tokens
_BYTES_PER_TOKEN = 400  # of an answer: the number, its text, its log-probability
_PROBE = "Build x=1, <b>'é' 日本"
_LONGEST_PAUSE = 5.0


class EndpointEngine(Engine):
    """Asks servers for the responses of agents whose weights are there."""

    elsewhere = True

    def __init__(self, policies: Mapping[str, Policy]):
        super().__init__(policies)
        self.run_id = uuid4().hex  # servers take weights of one run only
        self.mates = {agent_id: _Mate(policy) for agent_id, policy in policies.items()}
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

    def push(self, mate: _Mate, version: int) -> None:
        """Give the weights of an agent to its servers, unless they have them."""
        name, problem = f"{self.run_id}:{version}", ""
        if mate.wanted != name and rank() == 0:
            try:
                run(push(mate.endpoint.urls, _key(mate.policy.spec), mate.policy, name))
            except TrainingError as error:
                problem = str(error)
        if problem := gather_objects(problem)[0]:  # on all, and none asks before the servers have them
            raise TrainingError(problem)
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
    def check(cls, name: str, spec: PolicySpec) -> None:
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
            probe = {"text": _PROBE, "ids": ids, "vocabulary": len(tokenizer)}
        agent = endpoint.model or name.partition("'")[2].rstrip("'")
        try:
            run(introduced(endpoint.urls, _key(spec), agent, spec.knows_text_only, probe))
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

    async def _answer(self, mate: _Mate, prompt: Any, seed: int, greedy: bool) -> Action:
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


class _Mate:
    """One agent and its servers."""

    def __init__(self, policy: Policy):
        assert policy.spec.endpoint is not None
        self.policy = policy
        self.endpoint = policy.spec.endpoint
        self.latency = Latency(self.endpoint.patience)
        self.wanted = self.endpoint.version  # of the weights that answer
        self.policy_version: int | None = None  # the same as a number of updates, where they train here
        self.loads = dict.fromkeys(self.endpoint.urls, 0)  # requests on their way
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self.numbers: dict[str, list[float]] = {"absent": [], "retries": [], "latency": []}

    def open(self, connection: Any) -> None:
        """Connect, in the event loop that runs."""
        self.client = connection(self.endpoint.urls, _key(self.policy.spec), self.endpoint.concurrency)
        self.turnstile = asyncio.Semaphore(self.endpoint.concurrency)

    async def answer(self, prompt: Any, seed: int, greedy: bool) -> Action:
        """The action that answers a prompt, or the one that stands for it."""
        from collm.inference.endpoint.client import Traffic

        traffic = Traffic()
        async with self.turnstile:
            began, retries, cause, failed = time.monotonic(), 0, "late", None
            while True:
                limit = self.limit(began, retries)
                if limit <= 0:
                    break
                try:
                    action = await self.attempt(prompt, self.body(prompt, seed, greedy), limit, failed, traffic)
                except _Failed as failure:
                    cause, failed = failure.cause, failure.url
                    if not failure.again or (self.endpoint.late != "wait" and retries >= self.endpoint.retries):
                        break
                    retries += 1
                    await asyncio.sleep(failure.pause(retries))
                else:
                    self.count(0.0, retries, time.monotonic() - began)
                    return replace(action, wire_bytes=traffic.num_bytes)
        self.count(1.0, retries, None)
        return replace(self.stand_in(prompt, cause), wire_bytes=traffic.num_bytes)

    def limit(self, began: float, retries: int) -> float:
        """Seconds that the next attempt may take; none are left where it is not positive."""
        measured = self.latency.limit(sum(self.loads.values()) + 1, retries)
        if self.endpoint.late == "wait":
            return min(measured, began + self.endpoint.patience - time.monotonic())
        if self.endpoint.deadline is None:
            return measured
        share = self.endpoint.deadline / (self.endpoint.retries + 1)
        return min(measured, share, began + self.endpoint.deadline - time.monotonic())

    async def attempt(
        self, prompt: Any, body: dict[str, Any], limit: float, failed: str | None, traffic: Traffic
    ) -> Action:
        """The action from the server with the fewest requests on their way, if it comes in time.

        Args:
            prompt: The prompt.
            body: The request.
            limit: Seconds.
            failed: A server to avoid.
            traffic: Where to count bytes.
        """
        from collm.inference.endpoint.client import Fault, ask

        urls = [url for url in self.loads if url != failed] or list(self.loads)
        url = min(urls, key=lambda one: self.loads[one])
        self.loads[url] += 1
        load, began = sum(self.loads.values()), time.monotonic()
        vocabulary = None if self.policy.spec.knows_text_only else len(self.policy.tokenizer)
        most = _BYTES + _BYTES_PER_TOKEN * (self.policy.spec.max_new_tokens + len(prompt))
        try:
            answer = await asyncio.wait_for(ask(self.client, url, body, vocabulary, most, traffic), limit)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise _Failed("late", url, True, None) from error
        except Fault as fault:
            raise _Failed(fault.cause, url, fault.again, fault.after) from fault
        finally:
            self.loads[url] -= 1
        if self.wanted not in (None, answer.version):
            raise _Failed("stale" if self.endpoint.trained else "version", url, len(self.loads) > 1, None)
        if self.endpoint.trained and answer.log_probs is None:
            raise _Failed("no_log_probs", url, False, None)
        seconds = time.monotonic() - began
        self.latency.record(seconds, load)
        if answer.token_ids is None:
            return Action(answer.text, truncated=answer.truncated, seconds=seconds)
        log_probs = answer.log_probs or [0.0] * len(answer.token_ids)
        (action,) = self.policy.actions([prompt], [Response(answer.token_ids, log_probs)], self.policy_version)
        return replace(action, seconds=seconds)

    def body(self, prompt: Any, seed: int, greedy: bool) -> dict[str, Any]:
        """The request for an answer; what hosted models may not know is left out where it is a default."""
        spec = self.policy.spec
        body = {
            "model": self.endpoint.model or self.policy.agent_id,
            "max_tokens": spec.max_new_tokens,
            "temperature": 0 if greedy else spec.temperature,
            "top_p": 1 if greedy else spec.top_p,
            "seed": seed,
        }
        if spec.knows_text_only:
            given = {"top_k": spec.top_k, "min_tokens": spec.min_new_tokens}
            return {**body, "messages": list(prompt), **{name: value for name, value in given.items() if value}}
        more: dict[str, Any] = {
            "top_k": spec.top_k,
            "min_tokens": spec.min_new_tokens,
            "logprobs": 1,
            "return_token_ids": True,
        }
        if self.endpoint.trained:  # what the learner knows, whatever the server's folder says
            ends = {"stop_token_ids": sorted(self.policy.eos_ids), "ignore_eos": True}
            allowed = self.policy.allowed_ids
            more |= {**ends, "allowed_token_ids": None if allowed is None else list(allowed)}
        return {**body, "prompt": list(prompt), **more}

    def count(self, absent: float, retries: int, seconds: float | None) -> None:
        """Note an answer, or its absence."""
        self.numbers["absent"].append(absent)
        self.numbers["retries"].append(float(retries))
        if seconds is not None:
            self.numbers["latency"].append(seconds)

    def stand_in(self, prompt: Any, cause: str) -> Action:
        """The action in place of one that did not come, for `cause`."""
        last = getattr(prompt, "last", None) if self.endpoint.late == "last" else None
        if last is None:
            action = self.policy.encode_action("", prompt)
        else:
            action = Action(last.text, prompt, last.token_ids, [0.0] * len(last.token_ids), last.truncated)
        return replace(action, absent=cause, fatal=self.endpoint.late in ("fail", "wait"))


class _Failed(Exception):
    """An attempt that failed."""

    def __init__(self, cause: str, url: str, again: bool, after: float | None):
        super().__init__(cause)
        self.cause, self.url, self.again, self.after = cause, url, again, after

    def pause(self, retries: int) -> float:
        """Seconds before the next attempt: doubled each time, and a random part of that."""
        longest = min(_LONGEST_PAUSE, 0.1 * 2**retries)
        return max(self.after or 0.0, longest * random.uniform(0.5, 1.0))


def described(endpoint: EndpointSpec, model: str) -> dict[str, Any]:
    """What the first server says of an agent of this project; empty for other models, and where it says nothing."""
    from collm.inference.endpoint.client import Fault, described

    key = os.environ.get(endpoint.api_key_env) if endpoint.api_key_env else None
    try:
        return run(described(endpoint.urls[0], key, model))
    except (Fault, asyncio.TimeoutError, TimeoutError):  # the engine's own check says what is wrong
        return {}


def _key(spec: PolicySpec) -> str | None:
    variable = spec.endpoint.api_key_env if spec.endpoint else None
    return os.environ.get(variable) if variable else None
