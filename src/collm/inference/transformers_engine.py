"""The engine that generates with `generate` of transformers: slower, for every architecture, widely tested."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from collm.inference.base import Engine, Prompts, on_device
from collm.inference.sampling import Responses, Sampling, kept_tokens, masks_of_rows, pad_left, sampling_of
from collm.inference.trial import MAX_ERROR_WITHOUT_CACHE, Trial
from collm.models.backbone import Backbone
from collm.models.policy import Policy, Response
from collm.models.scores import restrict
from collm.models.support import unsupported, works
from collm.runtime.profiler import meter
from collm.runtime.progress import progress
from collm.sampling_mask import SamplingMask
from collm.trajectory import Action

_GLOBAL_GENERATOR = threading.Lock()  # held while torch's own random state is used, which all threads share


@dataclass(frozen=True)
class Batching:
    """How `generate` is called for a model.

    Args:
        padding: Prompts of different lengths are padded on the left and batched; otherwise only those of one length.
        use_cache: Keep a key/value cache instead of computing all tokens again for each new one.
    """

    padding: bool = True
    use_cache: bool = True


class TransformersEngine(Engine):
    """Generates for one policy after the other, straight from the modules that train."""

    def __init__(self, policies: Mapping[str, Policy]):
        super().__init__(policies)
        backbones = dict.fromkeys(policy.backbone for policy in policies.values())
        self.batching = {backbone: batching_of(backbone) for backbone in backbones}

    def generate(
        self, prompts: Mapping[str, Prompts], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """One response to each prompt; see `Engine.generate`."""
        actions = {}
        for agent_id, own in prompts.items():
            policy = self.policies[agent_id]
            policy.backbone.activate(policy.adapter)
            responses = generate(
                policy.backbone.lm,
                own,
                sampling_of(policy, greedy),
                sorted(policy.eos_ids),
                on_device(generator, policy),
                self.batching[policy.backbone],
            )
            actions[agent_id] = policy.actions(own, responses, self.version)
        return actions

    def slower(self, policy: Policy) -> list[str]:
        """What keeps generation for `policy` from being as fast as possible; see `Engine.slower`."""
        batching = self.batching[policy.backbone]
        reasons = {
            "sampled by `generate` of transformers": policy.spec.engine == "transformers",
            "prompts of one length at a time": batching.padding,
            "without a cache": batching.use_cache,
        }
        return [reason for reason, holds_not in reasons.items() if not holds_not]


def batching_of(backbone: Backbone) -> Batching:
    """How `generate` samples from a model correctly, the fastest way that does.

    Raises:
        ConfigurationError: It does not.
    """
    if backbone.support.known_decoder:
        return Batching()
    with Trial(backbone) as trial:
        for batching in (Batching(), Batching(padding=False), Batching(padding=False, use_cache=False)):
            error = 1 if batching.use_cache else MAX_ERROR_WITHOUT_CACHE
            if works(partial(trial.samples, partial(_sampled, backbone.lm, batching), error)):
                return batching
    reason = "`generate` of transformers samples other tokens than a plain forward pass predicts"
    raise unsupported(backbone.lm, backbone.path, reason)


def _sampled(
    lm: PreTrainedModel, batching: Batching, prompts: Prompts, sampling: Sampling, generator: torch.Generator
) -> Responses:
    return generate(lm, prompts, sampling, [], generator, batching)


@meter.phase("generate")
@torch.no_grad()
def generate(
    lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos_ids: Sequence[int],
    generator: torch.Generator,
    batching: Batching = Batching(),  # noqa: B008
) -> Responses:
    """Continue every prompt until an end token or the limit of its length.

    Args:
        lm: The model, in evaluation mode.
        prompts: Tokens of each prompt, at least one each.
        sampling: Sampling settings.
        eos_ids: Tokens that end a response; the one that did is part of it.
        generator: Source of random numbers, on the model's device.
        batching: How `generate` is called.

    Returns:
        For each prompt its sampled tokens, their log-probabilities at `temperature` and, where top-p, top-k or a
        shortest length cut the distribution, the sets they were drawn from; see `sampling.draw`.
    """
    if batching.padding:
        return _generate(lm, prompts, sampling, eos_ids, generator, batching.use_cache)
    responses: dict[int, Response] = {}
    for size in sorted(set(map(len, prompts))):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == size]
        chosen = [prompts[row] for row in rows]
        responses.update(
            zip(rows, _generate(lm, chosen, sampling, eos_ids, generator, batching.use_cache), strict=True)
        )
    return [responses[row] for row in range(len(prompts))]


def _generate(
    lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos_ids: Sequence[int],
    generator: torch.Generator,
    use_cache: bool,
) -> Responses:
    device = generator.device  # that of the model
    ids, mask = pad_left(prompts, device)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=not sampling.records_masks,
        output_scores=sampling.records_masks,  # after the cut, which logits are not
        use_cache=use_cache,
        **_distribution(sampling),
    )

    def allowed(so_far: Tensor, scores: Tensor) -> Tensor:
        progress.tell("token {} of at most {}", so_far.shape[1] - ids.shape[1] + 1, sampling.max_new_tokens)
        return restrict(scores, sampling.allowed_ids)

    # `generate` draws from torch's own generator, whose state is restored afterwards
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with _GLOBAL_GENERATOR, _without_defaults(lm), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = lm.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([allowed]),
        )
    tokens = output.sequences[:, ids.shape[1] :]
    if sampling.records_masks:
        scores = output.scores
    else:
        scores = [restrict(logits.float() / sampling.temperature, sampling.allowed_ids) for logits in output.logits]
    log_probs = torch.stack(
        [
            step.float().log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
            for step, chosen in zip(scores, tokens.unbind(1), strict=True)
        ],
        dim=1,
    )
    ended = torch.isin(tokens, torch.tensor(list(eos_ids), dtype=torch.long, device=device))
    sizes = torch.where(ended.any(1), ended.int().argmax(1) + 1, tokens.shape[1]).tolist()
    meter.count(int(mask.sum()) + sum(sizes) - len(sizes), ids.numel() + tokens.numel() - len(sizes))
    masks: list[SamplingMask] | list[None] = [None] * len(sizes)
    if sampling.records_masks:
        rows = torch.arange(len(sizes))
        drawn = [(SamplingMask.of(kept_tokens(step, sampling.allowed_ids)), rows) for step in scores]
        masks = masks_of_rows(drawn, sizes)
    return [
        Response(tokens[row, :size].tolist(), log_probs[row, :size].tolist(), mask)
        for row, (size, mask) in enumerate(zip(sizes, masks, strict=True))
    ]


@contextmanager
def _without_defaults(lm: PreTrainedModel) -> Iterator[None]:
    """Take the generation defaults of `lm` away, from which `generate` takes every setting that is not given."""
    own = lm.generation_config
    lm.generation_config = GenerationConfig()
    try:
        yield
    finally:
        lm.generation_config = own


def _distribution(sampling: Sampling) -> dict[str, float | bool]:
    if sampling.greedy:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }
