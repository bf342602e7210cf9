"""Weights on their way from the learner to servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from safetensors.torch import save
from torch import Tensor

from collm.errors import TrainingError
from collm.models.policy import Policy

VERSION_HEADER = "x-collm-version"
_ATTEMPTS = 3
_SECONDS = 600.0


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """The weights that make a policy what it is: its adapter, or its whole model."""
    backbone = policy.backbone
    weights = backbone.own_state() if policy.adapter is None else backbone.adapter_weights(policy.adapter)
    return {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}


async def push(urls: Sequence[str], key: str | None, policy: Policy, version: str) -> None:
    """Give the weights of a policy, as they are now, to all of its servers.

    Args:
        urls: Addresses, which end in /v1.
        key: Their key.
        policy: The policy.
        version: What responses of these weights will be called: the run, `:` and the number of updates.

    Raises:
        TrainingError: A server did not take them; those that did, and those that did not, refuse to pass for others.
    """
    from collm.inference.endpoint.client import connection

    content = save(weights_of(policy))
    headers = {VERSION_HEADER: version, "content-type": "application/octet-stream"}

    async def give(url: str) -> str:
        address, problem = f"{url.removesuffix('/v1')}/weights", ""
        for attempt in range(_ATTEMPTS):
            try:
                answer = await asyncio.wait_for(client.post(address, content=content, headers=headers), _SECONDS)
            except Exception as error:  # of httpx, and time that ran out
                problem = f"{type(error).__name__} {error}"
            else:
                if answer.status_code == 200:
                    return ""
                problem = f"status {answer.status_code}: {answer.text[:300]}"
                if answer.status_code < 500:
                    break
            await asyncio.sleep(0.5 * 2**attempt)
        return f"{url} ({problem})"

    async with connection(urls, key, len(urls)) as client:
        failed = [one for one in await asyncio.gather(*map(give, urls)) if one]
    if failed:
        raise TrainingError(
            f"the weights of {policy.agent_id!r} did not reach {'; '.join(failed)}. Start the servers again with "
            "serve.py --trainable; --ckpt_path with the run's last checkpoint continues."
        )
