"""Responses to requests of a server: one batch, in which each request has its own settings and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from collm.inference.embedded.engine import EmbeddedEngine
from collm.inference.embedded.forward import CachedModel, cached_model
from collm.inference.embedded.prefill import PrefixCache, prefill
from collm.inference.sampling import Sampling, draw
from collm.inference.transformers_engine import batching_of, generate
from collm.models.policy import Policy, Response
from collm.sampling_mask import SamplingMask


@dataclass(frozen=True)
class Job:
    """One response to write.

    Args:
        prompt: Tokens of the prompt, at least one.
        sampling: Its sampling settings.
        seed: Seed of its random numbers.
    """

    prompt: Sequence[int]
    sampling: Sampling
    seed: int


Respond = Callable[[Sequence[Job]], list[Response]]
"""What writes the responses of several jobs."""


def responder(policy: Policy, backend: str) -> Respond:
    """What writes the responses of a policy, whose weights do not change any more.

    Args:
        policy: The policy, in evaluation mode.
        backend: `collm` for the decode loop of this project, where it takes the model, or `transformers`.
    """
    backbone, eos_ids = policy.backbone, sorted(policy.eos_ids)
    if backend == "collm" and EmbeddedEngine.serves(policy):
        backbone.activate(policy.adapter)
        model = cached_model([(backbone, policy.adapter)])

        def batched(jobs: Sequence[Job]) -> list[Response]:
            with model.active():
                return decode(model, jobs, eos_ids)

        return batched
    batching = batching_of(backbone)

    def one_by_one(jobs: Sequence[Job]) -> list[Response]:
        backbone.activate(policy.adapter)
        written = []
        for job in jobs:
            generator = torch.Generator(backbone.device).manual_seed(job.seed)
            written += generate(backbone.lm, [job.prompt], job.sampling, eos_ids, generator, batching)
        return written

    return one_by_one


@torch.no_grad()
def decode(model: CachedModel, jobs: Sequence[Job], eos_ids: Sequence[int]) -> list[Response]:
    """Write the responses of `jobs` in one batch; those that end leave it.

    What a job draws depends on its own seed only, not on the jobs beside it.

    Args:
        model: The weights, of one policy; call this inside its `active`.
        jobs: What to write.
        eos_ids: Tokens that end a response; the one that did is part of it.
    """
    ends = torch.tensor(list(eos_ids), dtype=torch.long, device=model.device)
    generators = [torch.Generator(model.device).manual_seed(job.seed) for job in jobs]
    limits = [job.sampling.max_new_tokens for job in jobs]
    start, logits = prefill(model, [(0, tuple(job.prompt)) for job in jobs], PrefixCache())
    cache, width = start.cache, start.mask.shape[1]
    mask = torch.cat([start.mask, start.mask.new_ones(len(jobs), max(limits))], dim=1)
    position = start.mask.sum(1, keepdim=True)
    written: list[tuple[list[int], list[float]]] = [([], []) for _ in jobs]
    masks: list[list[SamplingMask]] = [[] for _ in jobs]
    alive = list(range(len(jobs)))  # the job of each row
    while True:
        for row, number in enumerate(alive):
            sampling, (tokens, log_probs) = jobs[number].sampling, written[number]
            forbidden = ends if len(tokens) < sampling.min_new_tokens else None
            token, log_prob, mask_of_token = draw(logits[row : row + 1], sampling, generators[number], forbidden)
            if mask_of_token is not None:
                masks[number].append(mask_of_token.to("cpu"))
            tokens.append(int(token))
            log_probs.append(float(log_prob))
        going = [written[number][0] for number in alive]
        keep = [
            row
            for row, (number, tokens) in enumerate(zip(alive, going, strict=True))
            if tokens[-1] not in eos_ids and len(tokens) < limits[number]
        ]
        if not keep:
            joined = [SamplingMask.join(own) if own else None for own in masks]
            return [Response(*one, mask) for one, mask in zip(written, joined, strict=True)]
        if len(keep) < len(alive):
            rows = torch.tensor(keep, device=model.device)
            cache.batch_select_indices(rows)
            mask, position = mask[rows], position[rows]
            alive = [alive[row] for row in keep]
        last = torch.tensor([[written[number][0][-1]] for number in alive], device=model.device)
        size = width + len(written[alive[0]][0])
        logits = model.forward(last, mask[:, :size], position, cache, [0] * len(alive))
        position = position + 1
