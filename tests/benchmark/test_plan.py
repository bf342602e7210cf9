"""Plans without weights: what is counted and estimated, against arithmetic by hand and against what autograd keeps."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from collm.benchmark import plan
from collm.benchmark.memory import Plan, Shape
from collm.samplers.tree import Tree
from toy import REPOSITORY, Toy

CONFIGS = REPOSITORY / "configs"
# Qwen3-4B: embeddings tied to the head; queries, keys, values, output; feed-forward; two norms, and those of heads
QWEN3_4B = (
    151936 * 2560
    + 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128)
    + 2560  # the last norm
)
HEAD = 2560 + 1  # of the critic, in float32


def planned(monkeypatch: pytest.MonkeyPatch, *args: str) -> Plan:
    found: list[Plan] = []
    monkeypatch.setattr(plan, "describe", lambda made, options: found.append(made) or [])
    assert plan.main(CONFIGS / "base.yaml", list(args)) == 0
    return found[0]


def files(*names: str) -> list[str]:
    return [f"--config={CONFIGS / name}.yaml" for name in names]


@pytest.fixture
def house_build(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The paper's game with two agents and a critic of Qwen3-4B, each trained in full in bfloat16."""
    names = ("algorithms/collm_cc", "environments/house_build", "models/qwen3_4b", "critics/qwen3_4b")
    return planned(monkeypatch, *files(*names))


def test_the_models_of_the_paper_have_their_published_size(house_build: Plan) -> None:
    assert QWEN3_4B == 4_022_468_096  # "4.0B"
    sizes = {name: sum(w.numel() for w in one.lm.parameters()) for name, one in house_build.module.backbones.items()}
    assert sizes == {"builder_1": QWEN3_4B, "builder_2": QWEN3_4B, "critic": QWEN3_4B}
    assert all(weight.is_meta for weight in house_build.module.parameters())


def test_memory_of_one_device(house_build: Plan) -> None:
    needs = house_build.needs(1, sharded=False)
    weights = 3 * QWEN3_4B * 2 + HEAD * 4
    assert needs.parameters == weights
    assert needs.gradients == weights + QWEN3_4B * 2  # in float32 for one network at a time
    # copies of the weights and two moments, in float32, and the count of steps of each tensor
    assert needs.optimizer == pytest.approx(3 * QWEN3_4B * 12 + HEAD * 8, rel=1e-6)
    layer = (8 + 4 * 2) * 2560 + (2 * 2 + 6) * (4096 + 1024) + 4 * 2 * 9728
    assert needs.activations == 16384 * (36 * 2 * 2560 + layer) + 4 * 2**23 * 4
    # 16 episodes of 4 turns of 1024 + 512 tokens; keys and values of 8 heads of 128
    assert needs.cache == 16 * 4 * 1536 * 1.5 * (2 * 36 * 8 * 128 * 2)
    assert needs.gathered == needs.sampled == 0
    assert needs.peak == needs.held + needs.cache  # more than the activations


def test_without_float32_copies_optimizer_states_are_half_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("algorithms/magrpo", "environments/house_build", "models/qwen3_4b")
    args = ("--data.num_generations=4", "--model.float32_weights=false")
    needs = planned(monkeypatch, *files(*names), *args).needs(1, sharded=False)
    assert needs.parameters == needs.gradients == 2 * QWEN3_4B * 2
    assert needs.optimizer == pytest.approx(2 * QWEN3_4B * 4, rel=1e-6)


def test_quantized_layers_take_a_seventh_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collm.models.specs.check_quantization", lambda *args: None)  # bitsandbytes may be missing
    names = ("algorithms/magrpo", "environments/house_build", "models/qwen3_4b")
    args = ("--model.parameters=lora", "--model.policy.lora_rank=8", "--data.num_generations=4")
    plain, small = (
        planned(monkeypatch, *files(*names), *args, *more) for more in ((), ("--model.policy.quantization=nf4",))
    )
    layers = 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728)
    saved = plain.needs(1, sharded=False).parameters - small.needs(1, sharded=False).parameters
    # half a byte and a 64th of 4 bytes in place of 2, and 16 numbers for each of 7 layers of 36 blocks
    assert saved == layers * (2 - 0.5 - 4 / 64) - 36 * 7 * 16 * 4
    assert not any("fsdp" in line for line in plan.table(small, [2], 80))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_moments_of_8_bits_take_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("algorithms/magrpo", "environments/house_build", "models/qwen3_4b")
    args = ("--data.num_generations=4", "--model.float32_weights=false")
    args += ("--model.optimizer=bitsandbytes.optim.AdamW8bit",)
    needs = planned(monkeypatch, *files(*names), *args).needs(1, sharded=False)
    # two moments of a byte, and a scale of 4 bytes for each 256 numbers of both
    assert needs.optimizer == pytest.approx(2 * QWEN3_4B * 2 * (1 + 4 / 256), rel=1e-3)


def test_shards_divide_what_replicas_repeat(house_build: Plan) -> None:
    one, ddp, fsdp = (house_build.needs(*how) for how in ((1, False), (8, False), (8, True)))
    assert (ddp.parameters, ddp.optimizer) == (one.parameters, one.optimizer)
    assert ddp.gradients == one.gradients + one.parameters  # with the buckets
    for name in ("parameters", "gradients", "optimizer"):
        assert getattr(fsdp, name) == pytest.approx(getattr(one, name) / 8, rel=1e-5), name
    assert fsdp.cache == ddp.cache == one.cache / 8
    assert fsdp.sampled == 2 * QWEN3_4B * 2  # two agents in one piece
    layer = 2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128
    assert fsdp.gathered == 2 * (QWEN3_4B - 34 * layer)


def test_a_network_on_its_own_device_needs_the_memory_of_one_network(house_build: Plan) -> None:
    one, agent, critic = (house_build.needs(1, sharded=False), *map(house_build.needs_of, ("builder_1", "critic")))
    assert (agent.parameters, agent.gradients) == (QWEN3_4B * 2, QWEN3_4B * 4)
    assert (critic.parameters, critic.gradients) == (QWEN3_4B * 2 + HEAD * 4, QWEN3_4B * 4 + HEAD * 4)
    assert agent.optimizer == pytest.approx(12 * QWEN3_4B, rel=1e-6)
    assert (agent.activations, agent.cache) == (one.activations, one.cache)
    assert critic.cache == 0
    assert house_build.placed() == agent  # whose cache is more than the critic's head


def test_lora_trains_adapters_on_one_frozen_model(monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(
        monkeypatch,
        *files("algorithms/collm_cc", "environments/house_build", "models/qwen3_4b", "critics/qwen3_4b"),
        *("--model.parameters=lora", "--model.policy.lora_rank=16", "--model.critic.model.lora_rank=16"),
    )
    assert len(found.module.backbones) == 1
    widths = (2560 + 4096) + 2 * (2560 + 1024) + (4096 + 2560) + 3 * (2560 + 9728)  # in and out of each matrix
    adapter = 36 * 16 * widths
    needs = found.needs(8, sharded=True)
    assert needs.gradients == pytest.approx(3 * adapter * 4 + HEAD * 4)  # whole everywhere, in float32
    assert needs.parameters == pytest.approx(QWEN3_4B * 2 / 8 + 3 * adapter * 4 + HEAD * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
def test_activations_are_what_autograd_keeps(kind: type, dtype: torch.dtype) -> None:
    def kept(num_layers: int) -> tuple[float, torch.nn.Module]:
        sizes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 2}
        lm = AutoModelForCausalLM.from_config(
            kind(vocab_size=64, head_dim=48, num_hidden_layers=num_layers, **sizes), dtype=dtype
        )
        found = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept, so that no place is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            lm.base_model(torch.zeros(1, 512, dtype=torch.long), torch.ones(1, 512, dtype=torch.bool), use_cache=False)
        weights = {weight.data_ptr() for weight in lm.parameters()}
        return sum(size for place, (size, _) in found.items() if place not in weights), lm

    shape = Shape.of(kept(1)[1])
    per_token = (kept(3)[0] - kept(1)[0]) / 2 / 512
    assert (shape.queries, shape.keys, shape.normalized) == (384, 96, kind is Qwen3Config)
    assert shape.activation_bytes(dtype.itemsize) == pytest.approx(per_token, rel=0.02)


def test_the_page_has_the_table_of_its_command(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    page = (REPOSITORY / "docs" / "many_devices.md").read_text()
    command = re.search(r"```bash\npython tools/plan\.py (.*?)```", page, re.DOTALL)[1].replace("\\\n", " ")
    assert plan.main(CONFIGS / "base.yaml", shlex.split(command)) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert "\n\n" + "\n".join(rows) + "\n\n" in page


def sampled_by(monkeypatch: pytest.MonkeyPatch, sampler: str, num_generations: int, *more: str) -> Plan:
    args = [f"--data.sampler={sampler}", "--data.tasks_per_rollout=3", f"--data.num_generations={num_generations}"]
    return planned(monkeypatch, *files("algorithms/magrpo", "environments/house_build", "models/tiny"), *args, *more)


@pytest.mark.parametrize(
    ("sampler", "responses"),
    [
        ("collm.samplers.parallel.Parallel", 2),
        ("collm.samplers.tree.Tree", 2**4),  # two at each of 2^3 nodes of the last turn
        # one other response of each of two agents at each of three turns, and two of the main episode
        ("collm.samplers.counterfactual.Counterfactual", 2 * 3 + 2),
    ],
)
def test_the_cache_holds_all_responses_that_are_generated_at_once(
    monkeypatch: pytest.MonkeyPatch, sampler: str, responses: int
) -> None:
    assert sampled_by(monkeypatch, sampler, 2).rows == 3 * responses


def test_crossed_responses_of_a_tree_make_more_nodes() -> None:
    game = Toy(num_agents=2, horizon=3)
    # 2^2 joint actions at each node: 4^2 nodes of the last turn, at each of which an agent answers twice
    assert Tree("cross").most_at_once(game, 2) == 16 * 2


def test_the_longest_history_of_all_agents_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = '{"builder_2": {"path": "tiny", "max_new_tokens": 96, "context_length": 4096}}'
    short = ("--model.policy.max_new_tokens=8", "--model.policy.context_length=4096", "--prompt_tokens=50")
    found = sampled_by(monkeypatch, "collm.samplers.parallel.Parallel", 2, *short, f"--model.policies={policies}")
    assert found.history == 4 * (50 + 96)


def test_models_of_critics_inside_of_critics_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("algorithms/collm_cc", "environments/house_build", "models/tiny", "critics/features_and_history")
    found = planned(monkeypatch, *files(*names), "--model.critic.rest.model.path=Qwen/Qwen3-4B-Instruct-2507")
    assert sum(w.numel() for w in found.module.backbones["critic"].lm.parameters()) == QWEN3_4B


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = ("algorithms/magrpo", "environments/tldr", "models/qwen3_1_7b")
    args = ["--devices", "2", "--memory", "80", "--data.num_generations", "4", *files(*names)]
    assert plan.main(CONFIGS / "base.yaml", args) == 0
    shown = capsys.readouterr().out
    assert "1,720,574,976 parameters in bfloat16" in shown
    rows = [line.split("|")[1:-1] for line in shown.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in row[:2]] for row in rows[2:]] == [["2", "ddp"], ["2", "fsdp"], ["2", "placed"]]
    # 2 x 1.72e9 x 2 bytes whole, and in two halves
    assert [row[2].strip() for row in rows[2:]] == ["6.9", "3.4", "3.4"]
