"""Sampling with `generate` of transformers, behind the interface of `generation.generate`: slower, widely tested."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from collm.inference.generation import Sampling, restrict
from collm.inference.prefill import pad_left
from collm.runtime.profiler import meter

_CHANCE = threading.Lock()  # torch's own source is one for all threads


@dataclass(frozen=True)
class Batching:
    """How `generate` is called for a model.

    Args:
        padding: Prompts of different lengths are padded on the left and go in together; otherwise those of one length.
        use_cache: States of earlier tokens are kept instead of reading everything again for each token.
    """

    padding: bool = True
    use_cache: bool = True


@meter.phase("generate")
@torch.no_grad()
def generate(
    lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos_ids: Sequence[int],
    generator: torch.Generator,
    batching: Batching = Batching(),  # noqa: B008
) -> list[tuple[list[int], list[float]]]:
    """Continue every prompt until it ends itself or reaches the limit; see `generation.generate`."""
    if batching.padding:
        return _generate(lm, prompts, sampling, eos_ids, generator, batching.use_cache)
    drawn: dict[int, tuple[list[int], list[float]]] = {}
    for size in sorted(set(map(len, prompts))):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == size]
        chosen = [prompts[row] for row in rows]
        drawn.update(zip(rows, _generate(lm, chosen, sampling, eos_ids, generator, batching.use_cache), strict=True))
    return [drawn[row] for row in range(len(prompts))]


def _generate(
    lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos_ids: Sequence[int],
    generator: torch.Generator,
    use_cache: bool,
) -> list[tuple[list[int], list[float]]]:
    device = generator.device  # that of the model
    ids, mask = pad_left(prompts, device)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        use_cache=use_cache,
        **_draws(sampling),
    )
    # its chance is torch's own, which is put back afterwards
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with _CHANCE, _without_defaults(lm), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = lm.generate(
            ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([lambda _, scores: restrict(scores, sampling.allowed_ids)]),
        )
    tokens = output.sequences[:, ids.shape[1] :]
    log_probs = torch.stack(
        [
            restrict(logits.float() / sampling.temperature, sampling.allowed_ids)
            .log_softmax(-1)
            .gather(-1, drawn[:, None])
            .squeeze(-1)
            for logits, drawn in zip(output.logits, tokens.unbind(1), strict=True)
        ],
        dim=1,
    )
    ended = torch.isin(tokens, torch.tensor(list(eos_ids), dtype=torch.long, device=device))
    sizes = torch.where(ended.any(1), ended.int().argmax(1) + 1, tokens.shape[1]).tolist()
    meter.count(int(mask.sum()) + sum(sizes) - len(sizes), ids.numel() + tokens.numel() - len(sizes))
    return [(tokens[row, :size].tolist(), log_probs[row, :size].tolist()) for row, size in enumerate(sizes)]


@contextmanager
def _without_defaults(lm: PreTrainedModel) -> Iterator[None]:
    """While it lasts, `lm` has no generation defaults of its own: `generate` takes what it is not told from there."""
    own = lm.generation_config
    lm.generation_config = GenerationConfig()
    try:
        yield
    finally:
        lm.generation_config = own


def _draws(sampling: Sampling) -> dict[str, float | bool]:
    if sampling.greedy:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }
