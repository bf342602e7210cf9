"""Groups that failed episodes leave unequal, and agents and critics that read with tokenizers of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from capture import Capture
from collm.environments.base import EpisodeFailure, Step
from collm.models.random_model import write_model
from collm.studies.runs import read_run
from collm.trajectory import Action, Task, Trajectory, Turn
from toy import Toy
from untrained import lone_critic

Fit = Callable[..., int]
NO_DECAY = ("--model.optimizer=torch.optim.AdamW", "--model.optimizer.weight_decay=0")
GROUPS = ["MAGRPO", "MARLOO", "MAReMax", "MAREINFORCE"]

# Groups


class Crumbling(Toy):
    """Of the episodes that are played side by side every second one breaks, in every turn."""

    def step_batch(
        self, states: Sequence[Any], joint_actions: Sequence[Mapping[str, str]]
    ) -> list[Step | EpisodeFailure]:
        steps = super().step_batch(states, joint_actions)
        return [EpisodeFailure("broke") if number % 2 else step for number, step in enumerate(steps)]


class ToThePoint(Crumbling):
    """What is left of every group earns as much as it has lines, so that members of a group differ."""

    def step(self, state: Any, joint_action: Mapping[str, str]) -> Step:
        step = super().step(state, joint_action)
        return Step(step.state, step.observations, len("".join(joint_action.values())) / 100, {"length": 1.0})


@pytest.mark.parametrize("sampler", ["Parallel", "Tree"])
@pytest.mark.parametrize("algorithm", GROUPS)
@pytest.mark.parametrize("failed", ["drop", "zero"])
def test_groups_may_be_unequal(fit: Fit, run_folder: Path, algorithm: str, sampler: str, failed: str) -> None:
    """Three of each task are played. In the first turn one of the first task fails and two of the second."""
    args = [f"--model={algorithm}", f"--data.sampler={sampler}", "--data.num_generations=3", "--trainer.max_epochs=1"]
    args += ["--data.episode_retries=0", f"--data.failed_episodes={failed}"]
    assert (
        fit(*args, *NO_DECAY, "--data.environment=test_unequal.ToThePoint", "--trainer.callbacks+=capture.Capture") == 0
    )
    # of independent episodes 0, 2 and 4 get through the first turn, and of these 2 fails in the second: one is left of
    # each task, which has nothing to be compared with
    alone = sampler == "Parallel" and failed == "drop" and algorithm != "MAREINFORCE"
    assert Capture.moved() == (set() if alone else Capture.owned_by("a1", "a2"))
    if sampler == "Parallel":
        assert list(read_run(run_folder).scalars["rollout/groups_of_one"].values()) == [2 * (failed == "drop")]
        assert list(read_run(run_folder).scalars["rollout/failed"].values()) == [pytest.approx(4 / 6)]


@pytest.mark.parametrize("sampler", ["Parallel", "Tree"])
@pytest.mark.parametrize("algorithm", GROUPS)
def test_what_is_left_alone_has_nothing_to_compare_with(fit: Fit, algorithm: str, sampler: str) -> None:
    """Two of each task are played and one of them fails: only the method without a baseline learns from the other."""
    args = [f"--model={algorithm}", f"--data.sampler={sampler}", "--data.num_generations=2", "--trainer.max_epochs=1"]
    args += ["--data.environment=test_unequal.ToThePoint", "--data.environment.horizon=1", "--data.episode_retries=0"]
    assert fit(*args, *NO_DECAY, "--trainer.callbacks+=capture.Capture") == 0
    assert Capture.moved() == (Capture.owned_by("a1", "a2") if algorithm == "MAREINFORCE" else set())


# Tokenizers


@pytest.fixture(scope="session")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights over another vocabulary: bytes in an order of their own, no chat template, no padding token."""
    folder = tmp_path_factory.mktemp("models") / "bytes"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(["</s>", *letters])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    write_model(
        folder,
        tokenizer,
        LlamaConfig,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    return str(folder)


def test_a_critic_encodes_responses_of_any_tokenizer(tiny_folder: str, byte_folder: str) -> None:
    """It reads text in tokens of its own: no text of one model is unknown to the other."""
    written = {"a1": "/setblock 1 2 0 stone", "a2": "\u0e17\u0e14 \U0001f9f1 \ufffd \x00 </s><|end|>"}
    turn = Turn({"a1": "look", "a2": "\u05d0\u05d1"}, {name: Action(text) for name, text in written.items()}, 1.0)
    trajectory = Trajectory(Task("task", {}), 0, 2, 1.0, [turn, turn])
    decoded = []
    for folder in (tiny_folder, byte_folder):
        critic = lone_critic(folder, ("a1", "a2"))
        (row,) = critic.encode([trajectory])
        assert max(row.ids) < critic.network.backbone.lm.config.vocab_size
        assert [turn for turn in row.turns if turn >= 0] == [0, 1]
        decoded.append(critic.network.tokenizer.decode(row.ids, clean_up_tokenization_spaces=False))
    assert decoded[0] == decoded[1]
    assert all(text in decoded[0] for text in [*written.values(), *turn.observations.values()])


@pytest.mark.parametrize("algorithm", ["CoLLMCC", "CoLLMDC", "CoLLMDCShared", "MAGRPO"])
def test_agents_with_different_tokenizers_train(fit: Fit, run_folder: Path, byte_folder: str, algorithm: str) -> None:
    """a1 and a critic of all agents have the tiny vocabulary, a2 writes bytes, and all of them read each other."""
    args = [
        f"--model={algorithm}",
        f"--model.policies.a2={{path: {byte_folder}, max_new_tokens: 5, learning_rate: 0.001}}",
    ]
    args += ["--data.num_generations=3", "--data.environment=test_unequal.ToThePoint", "--data.sampler=Discussion"]
    assert fit(*args, *NO_DECAY, "--trainer.callbacks+=capture.Capture") == 0
    moved = {Capture.learner[name] for name in Capture.moved()}
    assert {"a1", "a2"} <= moved
    ends = {name: AutoTokenizer.from_pretrained(run_folder / "agents" / name).eos_token for name in ("a1", "a2")}
    assert ends == {"a1": "<|end|>", "a2": "</s>"}


def test_one_set_of_parameters_has_one_tokenizer(
    fit: Fit, capsys: pytest.CaptureFixture[str], no_weights: None, byte_folder: str
) -> None:
    assert fit("--model.parameters=shared", f"--model.policies={{a2: {{path: {byte_folder}}}}}") == 2
    assert "parameters is 'shared' but the agents' policies differ" in capsys.readouterr().err
