"""One agent and its servers: requests, deadlines, retries, and what stands for an answer that does not come."""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from collm.inference.endpoint.latency import Latency
from collm.inference.endpoint.masks import unpacked
from collm.inference.sampling import sampling_of
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy import Policy, Response
from collm.trajectory import Action

if TYPE_CHECKING:  # httpx is an extra
    from collm.inference.endpoint.client import Traffic

_BYTES = 100_000  # of an answer beside its tokens
_BYTES_PER_TOKEN = 400  # of an answer: the number, its text, its log-probability
_LONGEST_PAUSE = 5.0


class Mate:
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
        self.client = connection(self.endpoint.urls, key_of(self.endpoint), self.endpoint.concurrency)
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
        if "return_sampling_mask" in body:  # at most half of the vocabulary is listed for each token
            most += 3 * self.policy.backbone.vocabulary_size * self.policy.spec.max_new_tokens
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
        if self.policy.allowed_ids is not None and not set(answer.token_ids) <= set(self.policy.allowed_ids):
            raise _Failed("not_allowed", url, False, None)
        log_probs, mask = answer.log_probs or [0.0] * len(answer.token_ids), None
        if "return_sampling_mask" in body:
            try:
                mask = unpacked(answer.sampling_mask, answer.token_ids, self.policy.backbone.vocabulary_size)
            except ValueError as error:
                raise _Failed("schema", url, True, None) from error
        response = Response(answer.token_ids, log_probs, mask)
        (action,) = self.policy.actions([prompt], [response], self.policy_version)
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
            # what is known here, whatever the server's folder says
            "stop_token_ids": sorted(self.policy.eos_ids),
            "ignore_eos": True,
        }
        if self.policy.allowed_ids is not None or self.endpoint.trained:
            more["allowed_token_ids"] = self.policy.allowed_ids
        if self.endpoint.trained and sampling_of(self.policy, greedy).records_masks:
            more["return_sampling_mask"] = True
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
        longest = min(_LONGEST_PAUSE, 0.1 * 2 ** min(retries, 30))
        return max(self.after or 0.0, longest * random.uniform(0.5, 1.0))


def key_of(endpoint: EndpointSpec) -> str | None:
    """The key of the servers of an agent, if they want one."""
    return os.environ.get(endpoint.api_key_env) if endpoint.api_key_env else None
