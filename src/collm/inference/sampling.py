"""How tokens are sampled, for all engines: settings, padded prompts, and one draw per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from collm.models.policy import Policy, Response
from collm.models.scores import restrict
from collm.sampling_mask import SamplingMask

Responses = list[Response]
"""What was sampled for each prompt."""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    Args:
        max_new_tokens: Largest number of tokens of one response.
        temperature: Divides the logits.
        top_p: Sample from the smallest set of tokens with this much probability; 1 is all of them.
        top_k: Sample from this many most likely tokens; 0 is all of them.
        greedy: Take the most likely token instead of sampling.
        min_new_tokens: Smallest number of tokens of one response; until then nothing ends it.
        allowed_ids: The only tokens that are sampled; None is all of them.
        uncut: Return log-probabilities before top-p, top-k and `min_new_tokens` cut the distribution.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    min_new_tokens: int = 0
    allowed_ids: tuple[int, ...] | None = None
    uncut: bool = False

    @property
    def records_masks(self) -> bool:
        """Whether responses come with the sets that their tokens were drawn from: it is cut, and not greedy."""
        cuts = self.top_p < 1 or self.top_k > 0 or self.min_new_tokens > 0
        return cuts and not self.greedy and not self.uncut


def sampling_of(policy: Policy, greedy: bool) -> Sampling:
    """The sampling settings of a policy."""
    spec = policy.spec
    return Sampling(
        spec.max_new_tokens,
        spec.temperature,
        spec.top_p,
        spec.top_k,
        greedy,
        spec.min_new_tokens,
        None if policy.allowed_ids is None else tuple(policy.allowed_ids),
        spec.trained_policy == "uncut",
    )


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts aligned at their last token, [R, L] each; masked positions hold token 0."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def draw(
    logits: Tensor, sampling: Sampling, generator: torch.Generator, forbidden: Tensor | None = None
) -> tuple[Tensor, Tensor, SamplingMask | None]:
    """One token per row, its log-probability at the sampling temperature, [R] each, and the sets they were drawn from.

    Greedy tokens and `Sampling.uncut` have the log-probabilities before the cut, and no sets.

    Args:
        logits: Logits of the next token, [R, V].
        sampling: Sampling settings.
        generator: Source of random numbers, on the device of the logits.
        forbidden: Tokens that are not sampled.
    """
    uncut = restrict(logits.float() / sampling.temperature, sampling.allowed_ids)
    logits = uncut if forbidden is None else uncut.index_fill(-1, forbidden, -torch.inf)
    if sampling.greedy:
        token = logits.argmax(-1, keepdim=True)
        return token.squeeze(-1), uncut.log_softmax(-1).gather(-1, token).squeeze(-1), None
    logits = cut_logits(logits, sampling)
    mask = sets_of(logits, sampling, forbidden) if sampling.records_masks else None
    log_probs = (uncut if mask is None else logits).log_softmax(-1)
    # one random number per row and the inverse of the cumulative distribution; `multinomial` draws one for each token
    # of the vocabulary, which takes longer than a forward pass of a small model
    cumulative = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    uniform = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device, generator=generator)
    token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return token.squeeze(-1), log_probs.gather(-1, token).squeeze(-1), mask


def cut_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits at the sampling temperature after top-k and top-p, [R, V]: -inf for tokens that are cut."""
    if sampling.top_k:
        logits = TopKLogitsWarper(min(sampling.top_k, logits.shape[-1]))(None, logits)
    if sampling.top_p < 1.0:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    return logits


def sets_of(logits: Tensor, sampling: Sampling, forbidden: Tensor | None) -> SamplingMask:
    """The sets that `draw` draws from, given logits after the cut, [R, V]."""
    if sampling.top_k or sampling.top_p < 1.0 or sampling.allowed_ids is not None:
        return SamplingMask.of(kept_tokens(logits, sampling.allowed_ids))
    return SamplingMask.without(logits.new_zeros(0) if forbidden is None else forbidden, len(logits))


def kept_tokens(logits: Tensor, allowed_ids: Sequence[int] | None) -> Tensor:
    """True at the tokens that can be drawn, [R, V], where cut ones have logits of -inf."""
    kept = logits > -torch.inf
    if allowed_ids is not None:  # others have the smallest number
        kept[:, ~torch.isin(torch.arange(kept.shape[1]), torch.tensor(allowed_ids))] = False
    return kept


def masks_of_rows(drawn: Sequence[tuple[SamplingMask, Tensor]], sizes: Sequence[int]) -> list[SamplingMask]:
    """The sets of each response, from those of each step.

    Args:
        drawn: For each step the sets of the tokens drawn in it, and the responses they belong to, [R] each.
        sizes: Number of tokens of each response; a row may have been decoded beyond it.
    """
    rows = torch.cat([rows for _, rows in drawn]).cpu()
    steps = torch.arange(len(drawn)).repeat_interleave(torch.tensor([len(rows) for _, rows in drawn]))
    order = torch.argsort(rows, stable=True)
    order = order[steps[order] < torch.tensor(sizes)[rows[order]]]
    return SamplingMask.join([mask.to("cpu") for mask, _ in drawn]).take(order).split(sizes)
