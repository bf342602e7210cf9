"""Weights on their way from the learner to servers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from safetensors.torch import save
from torch import Tensor

from collm.errors import TrainingError
from collm.models.policy import Policy
from collm.runtime.collectives import full_state, rank

VERSION_HEADER = "x-collm-version"
_ATTEMPTS = 3
_SECONDS = 600.0
_MOST_BYTES = 100_000  # of an answer


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """The weights that make a policy what it is: its adapter, or its whole model.

    Where they are sharded, all ranks have to call for them. The first gets them, and the others nothing.
    """
    backbone, adapter = policy.backbone, policy.adapter
    state = backbone.own_state() if adapter is None else backbone.adapter_weights(adapter)
    weights = full_state({name: weight.detach() for name, weight in state.items()}, rank() == 0) or {}
    return {name: weight.contiguous() for name, weight in weights.items()}


async def push(
    urls: Sequence[str], key: str | None, agent_id: str, weights: Mapping[str, Tensor], version: str
) -> None:
    """Give the weights of a policy to all of its servers.

    Args:
        urls: Addresses, which end in /v1.
        key: Their key.
        agent_id: The agent, for the message.
        weights: Its weights, as `weights_of` finds them.
        version: What responses of these weights will be called: the run, `:` and the number of updates.

    Raises:
        TrainingError: A server did not take them; those that did, and those that did not, refuse to pass for others.
    """
    from collm.inference.endpoint.client import connection, read

    content = save(dict(weights))
    headers = {VERSION_HEADER: version, "content-type": "application/octet-stream"}

    async def given(address: str) -> tuple[int, str]:
        """The status and the text of the answer."""
        asked = client.build_request("POST", address, content=content, headers=headers)
        answer = await client.send(asked, stream=True)
        try:
            return answer.status_code, (await read(answer, _MOST_BYTES)).decode("utf-8", "replace")
        finally:
            await answer.aclose()

    async def give(url: str) -> str:
        address, problem = f"{url.removesuffix('/v1')}/weights", ""
        for attempt in range(_ATTEMPTS):
            try:
                status, text = await asyncio.wait_for(given(address), _SECONDS)
            except Exception as error:  # of httpx, an answer that is too long, and time that ran out
                problem = f"{type(error).__name__} {error}"
            else:
                if status == 200:
                    return ""
                problem = f"status {status}: {text[:300]}"
                if status < 500:
                    break
            await asyncio.sleep(0.5 * 2**attempt)
        return f"{url} ({problem})"

    async with connection(urls, key, len(urls)) as client:
        failed = [one for one in await asyncio.gather(*map(give, urls)) if one]
    if failed:
        raise TrainingError(
            f"the weights of {agent_id!r} did not reach {'; '.join(failed)}. Start the servers again with "
            "serve.py --trainable; --ckpt_path with the run's last checkpoint continues."
        )
