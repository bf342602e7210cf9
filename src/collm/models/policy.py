"""An agent's policy: a causal language model that maps its own history to a distribution over whole responses."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from collm.errors import ConfigurationError
from collm.inference import transformers_engine as stock
from collm.inference import vllm_engine
from collm.inference.forward import Reader, reader_for, side_by_side
from collm.inference.generation import Sampling, generate, restrict
from collm.inference.prefill import Memory
from collm.models.architectures import decoder_of
from collm.models.backbone import Backbone
from collm.models.dialogue import Dialogue
from collm.models.loading import encode_data, load_tokenizer
from collm.models.specs import ModelSpec
from collm.packing import SequenceBatch
from collm.runtime.checks import COUNT, COUNT_OR_ZERO, POSITIVE, SHARE_ABOVE_ZERO, Range, check_numbers
from collm.runtime.profiler import meter
from collm.runtime.seeding import child_generator
from collm.trajectory import Action

LOGITS_PER_CHUNK = 2**23  # 32 MB of float32 logits at a time


@dataclass
class PolicySpec(ModelSpec):
    """The model an agent starts from and how it writes.

    Args:
        path: Weights to start from: `tiny`, `tiny_house`, `smollm2`, a local folder or a hub name; `relay` begins at
            random.
        random_weights: Start from random weights of the same shape instead.
        dtype: Number format of the weights: float32, bfloat16 or float16.
        learning_rate: Step size of the agent's optimizer.
        lora_rank: Rank of the LoRA adapter; 0 trains all weights.
        lora_alpha: Scale of the LoRA adapter.
        lora_dropout: Dropout in front of the LoRA adapter.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        dropout: Train with the dropout that the model's configuration has, although it samples without: importance
            ratios then differ from 1 before the first step.
        max_new_tokens: Longest response, in tokens.
        min_new_tokens: Shortest response, in tokens: until then nothing ends it. Equal to `max_new_tokens`, all
            responses have the same length, for measuring speed.
        temperature: Sampling temperature; the trained log-probabilities are those of the tempered policy.
        top_p: Sample from the smallest set of tokens with this much probability; 1 turns it off.
        top_k: Sample from this many most likely tokens; 0 turns it off.
        engine: What samples: `collm`; `transformers` for the `generate` of that library, which is slower; or `vllm`,
            which needs a GPU and the extra `collm[vllm]`, and works in one process.
        engine_memory: Share of the GPU's memory that `vllm` may take for its own weights and cache.
        keep_cache: Keep key/value states from turn to turn, so that only what is new is read: faster, and more memory
            while episodes of several turns are played.
        context_length: Longest prompt and response together, in tokens; by default what the model allows.
        chat_template: Use the tokenizer's chat template at every turn, if it has one.
        template_arguments: Extra arguments of the chat template, such as `enable_thinking: false`.
        system_prompt: First message of every dialogue, if any.
        control_tokens_in_data: Let what agents are shown contain control tokens: an observation that spells one of the
            tokenizer's, such as `<|im_end|>`, then ends a message in the prompt. By default it is ordinary characters.
        allowed_words: All it may write, each word one token of its tokenizer; by default anything. Log-probabilities
            are those of the policy that is restricted so.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    engine: Literal["collm", "transformers", "vllm"] = "collm"
    engine_memory: float = 0.3
    keep_cache: bool = True
    chat_template: bool = True
    template_arguments: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    control_tokens_in_data: bool = False
    allowed_words: list[str] | None = None

    def check(self, name: str) -> None:
        """Refuse what cannot work, reading configuration files only.

        Raises:
            ConfigurationError: Names the setting, its value and how to mend it.
        """
        super().check(name)
        check_numbers(name, self, max_new_tokens=COUNT, min_new_tokens=COUNT_OR_ZERO, top_k=COUNT_OR_ZERO)
        check_numbers(name, self, temperature=POSITIVE, top_p=SHARE_ABOVE_ZERO)
        check_numbers(name, self, engine_memory=Range(0, 1, above=True, below=True))
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigurationError(
                f"{name}.min_new_tokens is {self.min_new_tokens}; it must be between 0 and max_new_tokens, "
                f"{self.max_new_tokens}."
            )
        if self.engine not in ("collm", "transformers", "vllm"):
            raise ConfigurationError(f"{name}.engine is {self.engine!r}; choose collm, transformers or vllm.")
        if self.engine == "vllm":
            vllm_engine.check(name, self)
        self.allowed_ids(name)
        if self.prompt_room() < 1:
            raise ConfigurationError(
                f"{name}: max_new_tokens is {self.max_new_tokens}, which leaves no room for a prompt in a context of "
                f"{self.max_new_tokens + self.prompt_room()} tokens; lower it."
            )

    def allowed_ids(self, name: str = "policy") -> list[int] | None:
        """Tokens of `allowed_words`, None where anything may be written."""
        if self.allowed_words is None:
            return None
        pieces = [load_tokenizer(self.path)(word, add_special_tokens=False).input_ids for word in self.allowed_words]
        for word, ids in zip(self.allowed_words, pieces, strict=True):
            if len(ids) != 1:
                raise ConfigurationError(
                    f"{name}.allowed_words: {word!r} is {len(ids)} tokens of the tokenizer of {self.path!r}; each word "
                    "must be one."
                )
        ids = [ids[0] for ids in pieces]
        if len(set(ids)) < len(ids) or not ids:
            raise ConfigurationError(
                f"{name}.allowed_words is {self.allowed_words}; list different words, at least one."
            )
        return ids

    def prompt_room(self) -> int:
        """Tokens a prompt may have."""
        return self.max_tokens() - self.max_new_tokens


class Policy:
    """pi_i(a_i | h_i) of one agent over a backbone that it may share with others.

    Its parameters live in the backbone, which the algorithm owns.

    Args:
        agent_id: Whose policy this is.
        spec: How it writes.
        backbone: The language model under it.
        adapter: LoRA adapter that belongs to this policy; None where all weights do.
    """

    def __init__(self, agent_id: str, spec: PolicySpec, backbone: Backbone, adapter: str | None):
        self.agent_id = agent_id
        self.spec = spec
        self.backbone = backbone
        self.adapter = adapter
        self.tokenizer = load_tokenizer(spec.path)
        self.dialogue = make_dialogue(spec)
        eos = backbone.lm.generation_config.eos_token_id if backbone.lm.generation_config else None
        self.eos_ids = {self.tokenizer.eos_token_id} | set([eos] if isinstance(eos, int) else eos or [])
        self.allowed_ids = spec.allowed_ids()
        self.memory: Memory | None = None
        self.version = 0  # number of updates behind its weights, noted in what it writes
        self.readers: dict[tuple, Reader] | None = None  # by what they read with
        self.together: Hashable = None  # equal for policies that one reader serves

    def parameters(self) -> list[nn.Parameter]:
        """What trains when this agent learns."""
        return self.backbone.adapter_parameters(self.adapter)

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        """Tokens of the agent's history o_0, a_0, ..., o_t."""
        return self.dialogue.prompt(observations, actions)

    def keep_cache(self, on: bool) -> None:
        """Whether longer prompts go on from the key/value states of earlier ones; what was kept is dropped."""
        if self.backbone.engine is not None:
            self.backbone.engine.outdate()
        self.memory = Memory() if on and self.spec.keep_cache else None
        self.readers = {} if on else None
        self.together = None

    @property
    def device(self) -> torch.device:
        """Where its weights are; policies on different devices can be sampled at the same time."""
        return self.backbone.device

    @property
    def engine(self) -> str:
        """What samples: the engine it is told to use, or `transformers` for a model that no other engine can read."""
        falls_back = self.spec.engine == "collm" and not self.backbone.support.cached_decoding
        return "transformers" if falls_back else self.spec.engine

    @property
    def slower(self) -> str | None:
        """How it samples and trains, where the model does not allow what is fastest; None where it does."""
        embedded = self.spec.engine != "collm" or decoder_of(self.backbone.lm) is not None
        return self.backbone.support.slower(self.engine, embedded)

    @property
    def decoder(self) -> Hashable:
        """Policies for which this is equal can be sampled in one decode loop."""
        if self.engine == "transformers":
            return id(self)
        if self.readers is None or self.together is None:
            ours = self.spec.engine == "collm"
            self.together = side_by_side(self.backbone) if ours else id(self.backbone)
        return self.together, self.engine, repr(self.sampling(greedy=False)), frozenset(self.eos_ids)

    def sampling(self, greedy: bool) -> Sampling:
        """How its tokens are drawn."""
        spec = self.spec
        return Sampling(
            spec.max_new_tokens,
            spec.temperature,
            spec.top_p,
            spec.top_k,
            greedy,
            spec.min_new_tokens,
            self.allowed_ids,
        )

    def sample(self, prompts: Sequence[Sequence[int]], generator: torch.Generator, greedy: bool) -> list[Action]:
        """One response to each prompt, all prompts in one decode loop."""
        return self.sample_together([self], [prompts], generator, greedy)[0]

    def sample_together(
        self,
        policies: Sequence[Policy],
        prompts: Sequence[Sequence[Sequence[int]]],
        generator: torch.Generator,
        greedy: bool,
    ) -> list[list[Action]]:
        """One response to each prompt of several policies of one `decoder`, all of them in one decode loop.

        Args:
            policies: Whose prompts they are, this policy first.
            prompts: Prompts of each policy.
            generator: Source of chance.
            greedy: Take the most likely tokens.

        Returns:
            The responses of each policy.
        """
        everything = [prompt for own in prompts for prompt in own]
        how = (everything, self.sampling(greedy), sorted(self.eos_ids), self.own(generator))
        if self.engine == "transformers":
            with self.backbone.using(self.adapter):
                drawn = stock.generate(self.backbone.lm, *how, self.backbone.support.batching)
        elif self.engine == "vllm":
            if self.backbone.engine is None:
                self.backbone.engine = vllm_engine.Engine(self.backbone, self.spec)
            adapters = [policy.adapter for policy, own in zip(policies, prompts, strict=True) for _ in own]
            drawn = self.backbone.engine.generate(adapters, *how)
        else:
            members = [(policy.backbone, policy.adapter) for policy in policies]
            numbers = {member: number for number, member in enumerate(dict.fromkeys(members))}
            owners = [numbers[member] for member, own in zip(members, prompts, strict=True) for _ in own]
            reader = self.reader(list(numbers))
            with reader.reading():
                drawn = generate(reader, *how, self.memory, owners)
        rest = iter(drawn)
        return [policy.actions(own, [next(rest) for _ in own]) for policy, own in zip(policies, prompts, strict=True)]

    @meter.phase("generate")
    def reader(self, members: Sequence[tuple[Backbone, str | None]]) -> Reader:
        """What reads for policies on these backbones with these adapters, as their weights are now."""
        kept = {} if self.readers is None else self.readers
        if tuple(members) not in kept:
            kept[tuple(members)] = reader_for(members)
        return kept[tuple(members)]

    def own(self, generator: torch.Generator) -> torch.Generator:
        """`generator`, or one on the model's device that follows from it."""
        return generator if generator.device == self.device else child_generator(generator, self.device)

    def actions(self, prompts: Sequence[Sequence[int]], drawn: Sequence[tuple[list[int], list[float]]]) -> list[Action]:
        """Sampled tokens and their log-probabilities as responses."""
        texts = self.tokenizer.batch_decode([ids for ids, _ in drawn], skip_special_tokens=True)
        return [
            Action(text, prompt, ids, log_probs, truncated=ids[-1] not in self.eos_ids, policy_version=self.version)
            for text, prompt, (ids, log_probs) in zip(texts, prompts, drawn, strict=True)
        ]

    def encode_action(self, text: str, prompt: Sequence[int]) -> Action:
        """`text` as if this policy had written it, ended by the end-of-sequence token if it may write that."""
        ids = encode_data(self.tokenizer, text)
        if self.allowed_ids is None:
            ids = [*ids[: self.spec.max_new_tokens - 1], self.tokenizer.eos_token_id]
        else:
            ids = ids[: self.spec.max_new_tokens]
        return Action(text, prompt, ids, [0.0] * len(ids), truncated=self.allowed_ids is not None)

    def log_probs(self, batch: SequenceBatch, adapter: str | None = "own") -> tuple[Tensor, Tensor]:
        """Log-probability of every action token and entropy of the distribution it came from.

        The head is applied only where an action token is predicted, in chunks that are recomputed in the backward
        pass, so that no [R, L, V] tensor ever exists.

        Args:
            batch: Rows of tokens whose scored positions are action tokens.
            adapter: "own", or None for the backbone without adapters (the reference policy of LoRA agents).

        Returns:
            Two tensors [R, L], 0 outside the action mask.
        """
        with self.backbone.using(self.adapter if adapter == "own" else adapter):
            return self.backbone.within(lambda: self._log_probs(batch))

    def _log_probs(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        mask = batch.action_mask
        # the token at position l is predicted from position l - 1; a prompt has at least one token
        hidden = self.backbone.hidden_states(batch.ids, batch.attention_mask, mask.roll(-1, dims=1))
        states, targets = hidden[:, :-1][mask[:, 1:]], batch.ids[:, 1:][mask[:, 1:]]
        size = max(1, LOGITS_PER_CHUNK // self.backbone.vocabulary_size)
        how = (self.spec.temperature, self.allowed_ids)
        pieces = []
        for chunk, target in zip(states.split(size), targets.split(size), strict=True):
            if len(states) > size and torch.is_grad_enabled():
                pieces.append(checkpoint(_score, self.backbone.logits, chunk, target, *how, use_reentrant=False))
            else:
                pieces.append(_score(self.backbone.logits, chunk, target, *how))
        scored = [torch.cat(values) for values in zip(*pieces, strict=True)]
        log_probs, entropies = (values.new_zeros(mask.shape) for values in scored)
        log_probs[mask], entropies[mask] = scored
        return log_probs, entropies

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the agent as a Hugging Face folder, or as a PEFT folder, with its tokenizer; see `Backbone.save`.

        Args:
            folder: Where to; it is made.
            weights: The state dict of the language model, where it is not at hand in one piece.
        """
        self.backbone.save(folder, self.adapter, weights)
        self.tokenizer.save_pretrained(folder)


def make_dialogue(spec: PolicySpec) -> Dialogue:
    """The dialogue format of `spec`; needs the tokenizer only, no weights."""
    return Dialogue(
        load_tokenizer(spec.path),
        spec.prompt_room(),
        spec.chat_template,
        spec.template_arguments,
        spec.system_prompt,
        spec.control_tokens_in_data,
    )


def _score(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    allowed_ids: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of `targets` [M] and entropy, [M] each, from hidden states [M, hidden size]."""
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_probs = restrict(logits, allowed_ids).log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, targets[:, None]).squeeze(-1), entropy
