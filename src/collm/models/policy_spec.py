"""The settings of a policy: which model an agent starts from, and how its responses are sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from collm.errors import ConfigurationError
from collm.models.endpoint_spec import EndpointSpec
from collm.models.loading import load_tokenizer
from collm.models.specs import ModelSpec
from collm.runtime.checks import COUNT, COUNT_OR_ZERO, POSITIVE, SHARE_ABOVE_ZERO, Range, check_choice, check_numbers

ENGINES = ("collm", "transformers", "vllm", "endpoint", "human")
"""Short names of engines; `collm.inference.actors` knows their classes."""
LEAST_TEMPERATURE = 1e-3
"""Logits that are divided by less may be larger than the largest number."""


@dataclass
class PolicySpec(ModelSpec):
    """The model an agent starts from, with the settings of `ModelSpec`, and how it writes.

    Args:
        max_new_tokens: Longest response, in tokens.
        min_new_tokens: Shortest response, in tokens: until then nothing ends it. Equal to `max_new_tokens`, all
            responses have the same length, for measuring speed.
        temperature: Sampling temperature, 0.001 or more; the trained log-probabilities are those of the tempered
            policy.
        top_p: Sample from the smallest set of tokens with this much probability; 1 turns it off.
        top_k: Sample from this many most likely tokens; 0 turns it off.
        trained_policy: `sampled` trains the policy that acts, as `top_p`, `top_k` and `min_new_tokens` cut it: its
            log-probabilities are normalized over the tokens that were kept while sampling. `uncut` trains the
            log-probabilities before the cut, as many libraries do: the gradient is then biased.
        engine: What generates responses: `collm`; `transformers` for the `generate` of that library, which is slower;
            `vllm`, on a GPU or a processor, which needs a package (docs/engines.md);
            `endpoint` for servers anywhere, or `human` for somebody at the terminal, whose agents do not learn; or the
            import path of a subclass of `collm.inference.base.Engine`.
        endpoint: The servers, for `engine: endpoint`.
        frozen: Keep the weights as they are: a team mate that does not learn.
        engine_memory: Share of the GPU's memory that `vllm` may take for its own weights and cache.
        engine_sleep: Free the GPU's memory of `vllm` during updates.
        sampler_correction: Multiply the policy gradient by the truncated importance weight min(pi / mu, cap) of what
            trains (pi) against what sampled (mu), before the first step: per `token`, per `response`, or `off`. By
            default per token with engines whose numbers are not those of the trainer: all but `collm` and
            `transformers`. Those two sample in the precision of the weights, so set it with a `trainer.precision`
            of mixed precision, in which updates round otherwise.
        sampler_weight_cap: Largest such weight.
        keep_cache: Keep key/value states from turn to turn, so that only new tokens are computed: faster, and more
            memory while episodes of several turns are played.
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
    trained_policy: Literal["sampled", "uncut"] = "sampled"
    engine: str = "collm"
    endpoint: EndpointSpec | None = None
    frozen: bool = False
    engine_memory: float = 0.3
    engine_sleep: bool = False
    sampler_correction: Literal["token", "response", "off"] | None = None
    sampler_weight_cap: float = 2.0
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
        if self.engine == "endpoint":
            self._check_endpoint(name)
        elif self.endpoint is not None:
            raise ConfigurationError(
                f"{name}.endpoint is {self.endpoint.url!r}, but {name}.engine is {self.engine!r}, which asks no "
                "server; set the engine to endpoint, or leave the endpoint out."
            )
        if not self.knows_text_only:
            super().check(name)
        check_numbers(name, self, max_new_tokens=COUNT, min_new_tokens=COUNT_OR_ZERO, top_k=COUNT_OR_ZERO)
        check_numbers(name, self, temperature=Range(LEAST_TEMPERATURE), top_p=SHARE_ABOVE_ZERO)
        check_numbers(name, self, sampler_weight_cap=POSITIVE)
        check_numbers(name, self, engine_memory=Range(0, 1, above=True, below=True))
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigurationError(
                f"{name}.min_new_tokens is {self.min_new_tokens}; it must be between 0 and max_new_tokens, "
                f"{self.max_new_tokens}."
            )
        if self.knows_text_only:
            return
        if self.engine not in ENGINES and "." not in self.engine:
            raise ConfigurationError(
                f"{name}.engine is {self.engine!r}; choose one of {', '.join(ENGINES)}, or give the import path "
                "of a class like my_package.my_module.MyEngine."
            )
        check_choice(f"{name}.trained_policy", self.trained_policy, ("sampled", "uncut"))
        if self.sampler_correction is not None:
            check_choice(f"{name}.sampler_correction", self.sampler_correction, ("token", "response", "off"))
        self.allowed_ids(name)
        if self.prompt_room() < 1:
            raise ConfigurationError(
                f"{name}: max_new_tokens is {self.max_new_tokens}, which leaves no room for a prompt in a context of "
                f"{self.max_new_tokens + self.prompt_room()} tokens; lower it."
            )

    @property
    def cuts(self) -> bool:
        """Whether some tokens are not sampled although the model gives them a probability."""
        return self.top_p < 1 or self.top_k > 0 or self.min_new_tokens > 0

    @property
    def is_remote(self) -> bool:
        """Whether its weights are elsewhere."""
        trained = self.endpoint is not None and self.endpoint.trained
        return self.engine == "human" or (self.engine == "endpoint" and not trained)

    @property
    def knows_text_only(self) -> bool:
        """Whether nothing is known about the tokens of its model."""
        chats = self.endpoint is not None and self.endpoint.protocol == "chat"
        return self.is_remote and (self.engine == "human" or chats)

    @property
    def learns(self) -> bool:
        """Whether its weights are updated."""
        return not (self.frozen or self.is_remote)

    def _check_endpoint(self, name: str) -> None:
        if self.endpoint is None:
            raise ConfigurationError(f"{name}.engine is 'endpoint', but no {name}.endpoint.url says where it is.")
        self.endpoint.check(f"{name}.endpoint")
        if self.endpoint.trained and self.cuts and self.trained_policy == "uncut":
            raise ConfigurationError(
                f"{name}.trained_policy is 'uncut', whose log-probabilities servers do not send; leave it at 'sampled'."
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

    def correction(self) -> str:
        """`sampler_correction`, or what it is by default with this engine: token, response or off."""
        if self.sampler_correction is not None:
            return self.sampler_correction
        return "off" if self.engine in ("collm", "transformers") else "token"

    def prompt_room(self) -> int:
        """Tokens a prompt may have."""
        return self.max_tokens() - self.max_new_tokens
