"""The engine that generates with vLLM, an optional package for GPUs.

vLLM holds weights of its own. Before the first responses after every `sync` all weights are copied or, where only
adapters train, the adapter is written to a folder from which vLLM reads it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory

import torch

from collm.errors import ConfigurationError
from collm.inference.base import Engine, Prompts, on_device
from collm.inference.sampling import Responses, Sampling, sampling_of
from collm.models.backbone import Backbone
from collm.models.loading import resolve_path
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.runtime.profiler import meter
from collm.trajectory import Action

_MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's `max_lora_rank`


class VLLMEngine(Engine):
    """Generates with one vLLM for each backbone, in the same process and on the same GPU."""

    def __init__(self, policies: Mapping[str, Policy]):
        super().__init__(policies)
        self.servers: dict[Backbone, Server] = {}  # started when they are first asked

    @classmethod
    def check(cls, name: str, spec: PolicySpec) -> None:
        """Refuse what vLLM cannot do here; see `Engine.check`."""
        if importlib.util.find_spec("vllm") is None:
            raise ConfigurationError(f"{name}.engine is 'vllm', which is not installed: pip install 'collm[vllm]'.")
        if not torch.cuda.is_available():
            raise ConfigurationError(f"{name}.engine is 'vllm', which needs a GPU; choose collm or transformers.")
        if spec.lora_rank > _MAX_RANKS[-1]:
            raise ConfigurationError(
                f"{name}.lora_rank is {spec.lora_rank}; with engine 'vllm', at most {_MAX_RANKS[-1]}."
            )
        if spec.top_p < 1 or spec.top_k or spec.min_new_tokens:
            raise ConfigurationError(
                f"{name}.engine is 'vllm', whose log-probabilities are those after top_p, top_k and min_new_tokens cut "
                "the distribution, and not those that are trained; leave them at 1, 0 and 0, or choose another engine."
            )

    def generate(
        self, prompts: Mapping[str, Prompts], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """One response to each prompt; policies with the same backbone and settings in one batch."""
        groups: dict[tuple[Backbone, Sampling, frozenset[int]], list[str]] = {}
        for agent_id in prompts:
            policy = self.policies[agent_id]
            key = (policy.backbone, sampling_of(policy, greedy), frozenset(policy.eos_ids))
            groups.setdefault(key, []).append(agent_id)
        actions: dict[str, list[Action]] = {}
        for (backbone, sampling, eos_ids), agent_ids in groups.items():
            first = self.policies[agent_ids[0]]
            if backbone not in self.servers:
                self.servers[backbone] = Server(backbone, first.spec)
            asked = [prompt for agent_id in agent_ids for prompt in prompts[agent_id]]
            adapters = [self.policies[agent_id].adapter for agent_id in agent_ids for _ in prompts[agent_id]]
            server, source = self.servers[backbone], on_device(generator, first)
            responses = iter(server.generate(adapters, asked, sampling, sorted(eos_ids), source))
            for agent_id in agent_ids:
                own = prompts[agent_id]
                drawn = [next(responses) for _ in own]
                actions[agent_id] = self.policies[agent_id].actions(own, drawn, self.version)
        return actions

    def rest(self) -> None:
        """Forget which weights were copied: they may change from now on."""
        for server in self.servers.values():
            server.current.clear()


class Server:
    """One vLLM beside one backbone.

    Args:
        backbone: The model whose weights it copies.
        spec: Settings of a policy on the backbone: source and format of the weights, context, share of memory.
    """

    def __init__(self, backbone: Backbone, spec: PolicySpec):
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise ConfigurationError("engine 'vllm' works in runs of one process only; choose collm.")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are copied on the device, within this process
        import vllm

        largest = max((config.r for config in getattr(backbone.lm, "peft_config", {}).values()), default=0)
        limits = {
            "max_loras": len(backbone.adapters),
            "max_lora_rank": min(rank for rank in _MAX_RANKS if rank >= largest),
        }
        self.backbone = backbone
        self.llm = vllm.LLM(
            model=resolve_path(spec.path),
            dtype=spec.dtype,
            skip_tokenizer_init=True,
            max_model_len=spec.prompt_room() + spec.max_new_tokens,
            gpu_memory_utilization=spec.engine_memory,
            logprobs_mode="processed_logprobs",
            enable_lora=bool(backbone.adapters),
            **(limits if backbone.adapters else {}),
        )
        self.current: set[str | None] = set()  # adapters whose weights are those of the backbone; None for all weights
        self.adapters: dict[str, object] = {}  # LoRA requests
        self.loaded = 0  # adapters so far

    @meter.phase("generate")
    @torch.no_grad()
    def generate(
        self,
        adapters: Sequence[str | None],
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        eos_ids: Sequence[int],
        generator: torch.Generator,
    ) -> Responses:
        """Continue every prompt, each with an adapter of its own.

        The log-probabilities of greedy responses are those at temperature 1.
        """
        from vllm import SamplingParams

        for adapter in set(adapters):
            self.copy_weights(adapter)
        seeds = torch.randint(2**31, (len(prompts),), generator=generator, device=generator.device).tolist()
        settings = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "stop_token_ids": list(eos_ids),
            "allowed_token_ids": None if sampling.allowed_ids is None else list(sampling.allowed_ids),
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
        }
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [SamplingParams(seed=seed, **settings) for seed in seeds],
            use_tqdm=False,
            lora_request=[self.adapters[adapter] for adapter in adapters] if self.adapters else None,
        )
        responses = []
        for output in outputs:
            ids, log_probs = list(output.outputs[0].token_ids), output.outputs[0].logprobs
            responses.append((ids, [at[token].logprob for token, at in zip(ids, log_probs, strict=True)]))
        tokens = sum(len(prompt) for prompt in prompts) + sum(len(ids) - 1 for ids, _ in responses)
        meter.count(tokens, tokens)
        return responses

    def copy_weights(self, adapter: str | None) -> None:
        """Copy the weights of `adapter`, or for None all of them, unless they are current."""
        if adapter in self.current:
            return
        self.current.add(adapter)
        if adapter is None:
            weights = list(self.backbone.own_state().items())
            self.llm.apply_model(lambda model: model.load_weights(weights) and None)
            self.llm.reset_prefix_cache()  # adapters have prefix caches of their own
        else:
            self.load_adapter(adapter)

    def load_adapter(self, adapter: str) -> None:
        """Give vLLM the adapter as it is now, under a new name, so that no cached one is used."""
        from vllm.lora.request import LoRARequest

        if adapter in self.adapters:
            self.llm.llm_engine.remove_lora(self.adapters[adapter].lora_int_id)
        self.loaded += 1
        with TemporaryDirectory() as folder:
            self.backbone.save_adapter(folder, adapter)
            self.adapters[adapter] = LoRARequest(f"{adapter}_{self.loaded}", self.loaded, folder)
            self.llm.llm_engine.add_lora(self.adapters[adapter])  # reads the folder
