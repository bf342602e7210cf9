"""Sampling with vLLM, behind the interface of `generation.generate`: for GPUs, and an optional package.

vLLM holds weights of its own. They follow those that train: before the first responses of every rollout all weights are
copied, or, where only adapters train, the adapter is written to a folder and read from there.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from collm.errors import ConfigurationError
from collm.inference.generation import Sampling
from collm.models.backbone import Backbone
from collm.models.loading import resolve_path
from collm.runtime.profiler import meter

if TYPE_CHECKING:
    from collm.models.policy import PolicySpec

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, that vLLM has room for


def check(name: str, spec: PolicySpec) -> None:
    """Refuse what vLLM could not do here.

    Raises:
        ConfigurationError: Names the setting and how to mend it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigurationError(f"{name}.engine is 'vllm', which is not installed: pip install 'collm[vllm]'.")
    if not torch.cuda.is_available():
        raise ConfigurationError(f"{name}.engine is 'vllm', which needs a GPU; choose collm or transformers.")
    if spec.lora_rank > _RANKS[-1]:
        raise ConfigurationError(f"{name}.lora_rank is {spec.lora_rank}; with engine 'vllm', at most {_RANKS[-1]}.")
    if spec.top_p < 1 or spec.top_k or spec.min_new_tokens:
        raise ConfigurationError(
            f"{name}.engine is 'vllm', whose log-probabilities are those after top_p, top_k and min_new_tokens cut the "
            "distribution, and not those that are trained; leave them at 1, 0 and 0, or choose another engine."
        )


class Engine:
    """One vLLM beside one backbone, in the same process and on the same GPU.

    Args:
        backbone: Whose weights it follows.
        spec: Of a policy on the backbone: its weights' source and format, its context and its share of memory.
    """

    def __init__(self, backbone: Backbone, spec: PolicySpec):
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise ConfigurationError("engine 'vllm' works in runs of one process only; choose collm.")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are copied on the device, within this process
        import vllm

        largest = max((config.r for config in getattr(backbone.lm, "peft_config", {}).values()), default=0)
        room = {"max_loras": len(backbone.adapters), "max_lora_rank": min(rank for rank in _RANKS if rank >= largest)}
        self.backbone = backbone
        self.llm = vllm.LLM(
            model=resolve_path(spec.path),
            dtype=spec.dtype,
            skip_tokenizer_init=True,
            max_model_len=spec.prompt_room() + spec.max_new_tokens,
            gpu_memory_utilization=spec.engine_memory,
            logprobs_mode="processed_logprobs",
            enable_lora=bool(backbone.adapters),
            **(room if backbone.adapters else {}),
        )
        self.current: set[str | None] = set()
        self.adapters: dict[str, object] = {}
        self.loaded = 0

    @meter.phase("generate")
    @torch.no_grad()
    def generate(
        self,
        adapters: Sequence[str | None],
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        eos_ids: Sequence[int],
        generator: torch.Generator,
    ) -> list[tuple[list[int], list[float]]]:
        """Continue every prompt, each with an adapter of its own; see `generation.generate`.

        The log-probabilities of greedy responses are those at temperature 1.
        """
        from vllm import SamplingParams

        for adapter in set(adapters):
            self.follow(adapter)
        seeds = torch.randint(2**31, (len(prompts),), generator=generator, device=generator.device).tolist()
        how = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "stop_token_ids": list(eos_ids),
            "allowed_token_ids": None if sampling.allowed_ids is None else list(sampling.allowed_ids),
            "logprobs": 0,  # of what was drawn
            "detokenize": False,
        }
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [SamplingParams(seed=seed, **how) for seed in seeds],
            use_tqdm=False,
            lora_request=[self.adapters[adapter] for adapter in adapters] if self.adapters else None,
        )
        drawn = []
        for output in outputs:
            ids, log_probs = list(output.outputs[0].token_ids), output.outputs[0].logprobs
            drawn.append((ids, [at[token].logprob for token, at in zip(ids, log_probs, strict=True)]))
        tokens = sum(len(prompt) for prompt in prompts) + sum(len(ids) - 1 for ids, _ in drawn)
        meter.count(tokens, tokens)
        return drawn

    def outdate(self) -> None:
        """Be told that weights may change."""
        self.current.clear()

    def follow(self, adapter: str | None) -> None:
        """Take over the weights of `adapter`, or all, unless that was done since they were said to change."""
        if adapter in self.current:
            return
        self.current.add(adapter)
        if adapter is None:
            weights = list(self.backbone.own_state().items())
            self.llm.apply_model(lambda model: model.load_weights(weights) and None)
            self.llm.reset_prefix_cache()  # of adapters, each has its own
        else:
            self.load_adapter(adapter)

    def load_adapter(self, adapter: str) -> None:
        """Give vLLM the adapter as it is now, under a name it has not seen."""
        from vllm.lora.request import LoRARequest

        if adapter in self.adapters:
            self.llm.llm_engine.remove_lora(self.adapters[adapter].lora_int_id)
        self.loaded += 1
        with TemporaryDirectory() as folder:
            self.backbone.save_adapter(folder, adapter)
            self.adapters[adapter] = LoRARequest(f"{adapter}_{self.loaded}", self.loaded, folder)
            self.llm.llm_engine.add_lora(self.adapters[adapter])  # reads the folder
