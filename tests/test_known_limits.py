"""The thirty limits and failures of a released library for this task (docs/known_limits.md), asked of this project.

Every test is named after the number of its row. What a test does not need it does not run: most work on a game and a
language model of random weights without the command line.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors import actors_of, sampled
from capture import Capture
from collm.algorithms.base import MultiAgentModule
from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.collm_dc import CoLLMDC
from collm.algorithms.collm_dc_shared import CoLLMDCShared
from collm.algorithms.magrpo import MAGRPO
from collm.critics.language_model import LanguageModelCritic
from collm.data import RolloutDataModule
from collm.environments.base import Step
from collm.environments.writing.tldr import TLDR
from collm.errors import ConfigurationError
from collm.inference.embedded import engine
from collm.inference.sampling import Responses
from collm.metrics import episode_numbers
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.objectives import policy_gradient_loss
from collm.packing import action_sequences, pad_sequences
from collm.samplers.parallel import Parallel
from collm.studies.runs import read_run
from collm.trajectory import Action, Task, Trajectory, Turn, collate
from test_cli import the_message
from toy import REPOSITORY, Toy

Fit = Callable[..., int]

# Tokens: L1 to L4


@pytest.fixture
def ending_folder(tiny_folder: str, tmp_path: Path) -> str:
    """The tiny model with a tokenizer that pads with the token that ends responses and chat messages."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "pad_is_eos"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def make_policy(folder: str, eos_bias: float = 0.0, **options: Any) -> Policy:
    """A policy that likes to end its responses by `eos_bias` more than its random weights do."""
    spec = PolicySpec(path=folder, **{"max_new_tokens": 12, **options})
    policy = Policy("a1", spec, Backbone(folder, "float32"), None)
    head = policy.backbone.lm.get_output_embeddings()
    head.bias = nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[policy.tokenizer.eos_token_id] = eos_bias
    return policy


def written(policy: Policy, num_responses: int) -> list[Action]:
    """Responses to prompts of different lengths."""
    prompts = [policy.prompt([f"task {'1 ' * (index % 3)}"], []) for index in range(num_responses)]
    return sampled(policy, prompts, torch.Generator().manual_seed(0), greedy=False)


def scored(policy: Policy, actions: Sequence[Action], pad_id: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, action mask and log-probabilities of `actions` in one padded batch, as training reads them, [R, L] each."""
    trajectories = [
        Trajectory(Task(str(index), {}), index, 1, 1.0, [Turn({"a1": ""}, {"a1": action}, 0.0)])
        for index, action in enumerate(actions)
    ]
    pad_id = policy.tokenizer.pad_token_id if pad_id is None else pad_id
    batch = pad_sequences(action_sequences(trajectories, "a1"), pad_id, "cpu")
    return batch.ids, batch.action_mask, policy.log_probs(batch)[0]


def gradient(policy: Policy, log_probs: Tensor) -> Tensor:
    return torch.autograd.grad(log_probs.sum(), policy.backbone.lm.get_input_embeddings().weight)[0]


def test_l01_padding_with_the_end_token_changes_nothing(tiny_folder: str, ending_folder: str) -> None:
    results = []
    for folder in (tiny_folder, ending_folder):
        policy = make_policy(folder, eos_bias=3.0)
        eos_id = policy.tokenizer.eos_token_id
        assert (policy.tokenizer.pad_token_id == eos_id) == (folder == ending_folder)
        actions = written(policy, 16)
        assert all(eos_id in action.prompt_ids for action in actions)  # the chat format ends messages with it
        assert all(0 < len(action.token_ids) <= 12 for action in actions)
        assert sum(bool(action.text) for action in actions) > 8
        results.append((actions, gradient(policy, scored(policy, actions)[2])))
    assert results[0][0] == results[1][0]
    assert_close(results[0][1], results[1][1], rtol=0, atol=0)


def test_l02_the_end_token_is_trained(ending_folder: str) -> None:
    policy = make_policy(ending_folder, eos_bias=3.0)
    actions = written(policy, 48)
    ids, mask, log_probs = scored(policy, actions)
    ended = torch.tensor([not action.truncated for action in actions])
    assert 5 < ended.sum() < 48
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)  # the last scored position of each row
    assert ((ids.gather(1, last[:, None])[:, 0] == policy.tokenizer.eos_token_id) == ended).all()
    assert (log_probs.gather(1, last[:, None])[ended] < 0).all()


def test_l03_padding_is_not_in_the_loss(ending_folder: str) -> None:
    policy = make_policy(ending_folder, eos_bias=3.0)
    actions = written(policy, 16)
    ids, mask, log_probs = scored(policy, actions)
    lengths = [len(action.token_ids) for action in actions]
    assert len(set(lengths)) > 3
    assert mask.sum(1).tolist() == lengths
    assert not log_probs[~mask].any()
    others = scored(policy, actions, pad_id=7)
    assert (ids != others[0]).any()
    assert_close(gradient(policy, log_probs), gradient(policy, others[2]), rtol=0, atol=0)


def test_l04_the_trained_log_probs_are_those_of_the_tempered_policy(tiny_folder: str) -> None:
    policy = make_policy(tiny_folder, temperature=0.5, top_p=0.9, top_k=50)
    actions = written(policy, 4)
    _, mask, trained = scored(policy, actions)
    sampled = torch.tensor([log_prob for action in actions for log_prob in action.log_probs])
    assert_close(trained[mask], sampled, rtol=1e-4, atol=1e-4)
    plain = make_policy(tiny_folder)
    assert (scored(plain, actions)[2][mask] - sampled).abs().max() > 0.1


# Generations and turns: L5 to L7


@pytest.fixture
def team(tiny_folder: str) -> dict[str, Policy]:
    return {name: make_policy(tiny_folder, max_new_tokens=3) for name in ("a1", "a2")}


def test_l05_several_turns_of_several_generations(team: dict[str, Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    generate = engine.generate

    def spy(model: Any, prompts: Sequence, *args: Any) -> Responses:
        asked.append(len(prompts))
        return generate(model, prompts, *args)

    monkeypatch.setattr(engine, "generate", spy)
    game = Toy(horizon=3)
    trajectories = Parallel().rollout(game, game.tasks("train"), actors_of(team), 0, "cpu", num_generations=2)
    assert [trajectory.group for trajectory in trajectories] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {len(trajectory.turns) for trajectory in trajectories} == {3}
    assert asked == [16] * 3  # both agents and all eight episodes in one batch


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("algorithm", ["MAGRPO", "MARLOO", "MAReMax"])
def test_l06_a_group_of_one_is_refused(fit: Fit, capsys: pytest.CaptureFixture[str], algorithm: str) -> None:
    assert fit(f"--model={algorithm}", "--data.num_generations=1") == 2
    message = the_message(capsys)
    assert f"data.num_generations is 1, but {algorithm} compares the joint samples of a group" in message
    assert "set it to 2 or more, or use MAREINFORCE" in message


def test_l07_nothing_but_the_environment_ends_an_episode_and_it_is_logged(team: dict[str, Policy]) -> None:
    for stop_at, num_turns in ((None, 3.0), (0.0, 1.0)):
        game = Toy(horizon=3, stop_at=stop_at)
        trajectories = Parallel().rollout(game, game.tasks("train"), actors_of(team), 0, "cpu")
        assert all(0 <= turn.reward <= 1 for trajectory in trajectories for turn in trajectory.turns)
        assert episode_numbers(collate(trajectories))["turns"] == [num_turns] * 4  # under rollout/turns and eval/turns


# Adapters, settings and optimizers: L8 to L11


@pytest.mark.parametrize("algorithm", ["CoLLMCC", "MAGRPO"], ids=["l08_with_critic", "l09_without"])
def test_l08_l09_adapters_are_a_setting(fit: Fit, run_folder: Path, algorithm: str) -> None:
    lora = ["--model.parameters=lora", "--model.policy.lora_rank=2", "--data.num_generations=2"]
    lora += ["--model.critic.model.lora_rank=2"] if algorithm == "CoLLMCC" else []
    assert fit(f"--model={algorithm}", *lora, "--trainer.max_epochs=1") == 0
    for agent_id in ("a1", "a2"):
        assert (run_folder / "agents" / agent_id / "adapter_config.json").exists()
        assert not list((run_folder / "agents" / agent_id).glob("model*"))
    state = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    kept = [name for name in state if name.startswith("backbones.")]
    assert kept
    assert all("lora_" in name for name in kept)  # one frozen model under all of them, which is not stored


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("setting", "fragments"),
    [
        ("--model.policy.peft={r: 4}", ["policy.peft"]),
        ("--model.policy.lora_rnk=4", ["'policy.lora_rnk'", "did you mean 'policy.lora_rank'"]),
        ("--model.peft={r: 4}", ["'peft.r'"]),
    ],
)
def test_l10_unknown_settings_are_refused(
    fit: Fit, capsys: pytest.CaptureFixture[str], setting: str, fragments: list[str]
) -> None:
    assert fit(setting) == 2
    message = the_message(capsys)
    assert "unknown setting" in message
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize("mode", ["separate", "lora", "shared"])
@pytest.mark.parametrize("algorithm", [CoLLMCC, CoLLMDC, CoLLMDCShared, MAGRPO])
def test_l11_no_weight_has_two_optimizers(tiny_folder: str, algorithm: type[MultiAgentModule], mode: str) -> None:
    """Also where all agents and critics name the same path, and where one set of weights plays all agents."""
    rank = 2 if mode == "lora" else 0
    critic = LanguageModelCritic(ModelSpec(path=tiny_folder, lora_rank=rank))
    critics = {} if algorithm is MAGRPO else {"critic": critic}
    module = algorithm(
        agent_ids=("a1", "a2"), policy=PolicySpec(path=tiny_folder, lora_rank=rank), parameters=mode, **critics
    )
    module.configure_model()
    optimizers, _ = module.configure_optimizers()
    owned = [id(weight) for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
    assert len(owned) == len(set(owned))
    agents = {"team"} if mode == "shared" else {"a1", "a2"}
    assert {name for name in module.learners if not name.startswith("critic")} == agents
    left_out = [name for name, weight in module.named_parameters() if id(weight) not in set(owned)]
    assert bool(left_out) == (mode == "lora")  # the frozen model under the adapters
    assert not any("lora_" in name or "head" in name.partition("lm.")[0] for name in left_out)


# Checkpoints: L12 to L14


@pytest.fixture(scope="module")
def finished(finish: Callable[..., Path]) -> Path:
    """The folder of a finished run of one epoch."""
    return finish("--trainer.max_epochs=1")


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_l12_a_resumed_run_ends_where_an_uninterrupted_one_does(fit: Fit, finished: Path, run_folder: Path) -> None:
    assert fit() == 0
    assert fit(f"--ckpt_path={finished / 'checkpoints' / 'last.ckpt'}") == 0
    whole, resumed = last(run_folder), last(run_folder.parent / "version_1")
    assert_close(resumed["state_dict"], whole["state_dict"], rtol=0, atol=0)
    assert_close(resumed["optimizer_states"], whole["optimizer_states"], rtol=0, atol=0)


def test_l13_a_run_goes_on_with_another_learning_rate_and_other_data(
    fit: Fit, finished: Path, run_folder: Path
) -> None:
    changed = ["--model.policy.learning_rate=5e-4", "--data.tasks_per_rollout=3", "--data.environment.num_tasks=7"]
    assert fit(f"--ckpt_path={finished / 'checkpoints' / 'last.ckpt'}", *changed, "--data.num_generations=2") == 0
    state = last(run_folder)
    assert state["epoch"] == 1
    # the new rate counts for the actors and the critic's stays; what the optimizers had gathered is kept
    assert [one["param_groups"][0]["lr"] for one in state["optimizer_states"]] == pytest.approx([5e-4, 5e-4, 1e-3])
    assert {int(moments["step"]) for one in state["optimizer_states"] for moments in one["state"].values()} == {2}
    assert state["collm"]["joint_samples"] == 4 + 3 * 2 * 2


def test_l13_a_schedule_goes_on_in_proportion(fit: Fit, run_folder: Path) -> None:
    schedule = ["--model.lr_schedule=torch.optim.lr_scheduler.StepLR", "--model.lr_schedule.step_size=1"]
    schedule += ["--model.lr_schedule.gamma=0.5"]
    assert fit(*schedule, "--trainer.max_epochs=1") == 0
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    assert fit(*schedule, f"--ckpt_path={checkpoint}", "--model.policy.learning_rate=4e-4") == 0
    rates = [one["param_groups"][0]["lr"] for one in last(run_folder.parent / "version_1")["optimizer_states"]]
    assert rates == pytest.approx([1e-4, 1e-4, 2.5e-4])


def test_l14_a_failure_in_an_epoch_keeps_the_last_checkpoint(
    fit: Fit, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = MultiAgentModule.on_train_batch_start

    def fail(module: MultiAgentModule, batch: Any, batch_idx: int) -> None:
        if (module.trainer.current_epoch, batch_idx) == (1, 1):
            raise OSError("the disk is gone")
        begin(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(MultiAgentModule, "on_train_batch_start", fail)
        assert fit("--data.rollouts_per_epoch=2") == 1
    assert last(run_folder)["epoch"] == 0
    assert len(read_run(run_folder).scalars["rollout/return"]) == 3  # curves reach further than the checkpoint
    assert fit("--data.rollouts_per_epoch=2", f"--ckpt_path={run_folder / 'checkpoints' / 'last.ckpt'}") == 0
    assert last(run_folder.parent / "version_1")["epoch"] == 1


# What is seen of a run: L15 to L17


def test_l15_progress_tells_playing_from_learning_and_shows_the_return(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--data.rollouts_per_epoch=2", "--trainer.max_epochs=1") == 0
    shown = "".join(capsys.readouterr())
    for part in ("[turn 1, 2 episodes]", "[turn 2, 2 episodes]", "[update]", "rollout/return=", "eval/return="):
        assert part in shown, part


def test_l16_l17_a_silent_run_keeps_its_curves_without_an_account(
    fit: Fit, run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a run asked the network for something"))
    assert fit("--trainer.enable_progress_bar=false", "--trainer.max_epochs=1") == 0
    assert "Epoch 0" not in "".join(capsys.readouterr())
    curves = read_run(run_folder).scalars
    assert {"rollout/return", "loss/critic", "eval/return", "policy/entropy/a1"} <= set(curves)
    assert "wandb" not in sys.modules
    csv = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=csv"]
    assert fit(*csv, "--trainer.max_epochs=1") == 0
    (table,) = Path("csv").rglob("metrics.csv")
    assert "rollout/return" in table.read_text().splitlines()[0]


# Data: L18 to L21


def test_l18_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    for sizes, split in (({"num_tasks": 0}, "train"), ({"num_eval": 0}, "eval")):
        with pytest.raises(ConfigurationError, match=f"Toy: the {split} split has no tasks"):
            RolloutDataModule(Toy(**sizes))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(
        ConfigurationError, match=r"empty\.jsonl' holds no rows; write one object with the field 'prompt' per row"
    ):
        TLDR(dataset=str(tmp_path / "empty.jsonl"))


def test_l19_tasks_without_a_length_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Toy.tasks
    monkeypatch.setattr(Toy, "tasks", lambda game, split: (task for task in listed(game, split)))
    data = RolloutDataModule(Toy(num_tasks=3), tasks_per_rollout=3)
    assert sorted(task.task_id for task in data.tasks_of(0)) == ["train_0", "train_1", "train_2"]


def test_l20_a_wrong_column_is_named_by_file_and_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "I have a cat."}\n\n{"text": "And a dog."}\n')
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl line 3: no field 'prompt' \(it has \['text'\]\)"):
        TLDR(dataset=str(rows))
    rows.write_text('{"prompt": "I have a cat."}\n{"prompt": " "}\n')
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl line 2: the field 'prompt' must be text that is not"):
        TLDR(dataset=str(rows))


@pytest.mark.parametrize("chat_template", [True, False])
def test_l20_an_empty_observation_is_a_prompt(tiny_folder: str, chat_template: bool) -> None:
    policy = make_policy(tiny_folder, chat_template=chat_template)
    prompt = policy.prompt([""], [])
    assert prompt
    (action,) = sampled(policy, [prompt], torch.Generator(), greedy=False)
    assert 0 < len(action.token_ids) <= 12


@pytest.mark.usefixtures("no_weights")
def test_l21_a_prompt_that_does_not_fit_is_refused(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--data.environment.first=" + "1 " * 1100, "--model.policy.max_new_tokens=24") == 2
    message = the_message(capsys)
    assert re.search(
        r"task 'train_0': the first prompt of agent 'a1' has \d{4} tokens, but its context leaves 1000", message
    )
    assert "lower max_new_tokens, shorten the task or choose a model with a longer context" in message


# What environments return: L22 to L27


class Careless(Toy):
    """A game whose author made a mistake.

    Args:
        mistake: Which one.
        kwargs: Everything that the game takes.
    """

    num_steps = 0

    def __init__(self, mistake: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.mistake = mistake

    def reset(self, task: Task, rng: random.Random) -> tuple[Any, Any]:
        state, observations = super().reset(task, rng)
        if self.mistake == "nothing_first":
            return state, None
        return state, observations | ({"a9": "hello"} if self.mistake == "one_too_many" else {})

    def step(self, state: Any, joint_action: Mapping[str, str]) -> Step:
        Careless.num_steps += 1
        step = super().step(state, joint_action)
        if self.mistake == "type_error":
            raise TypeError("reward() takes 2 positional arguments")
        rewards = {"one_each": [0.5, 0.5], "no_reward": None, "text_reward": "0.5"}
        texts = {"one_missing": {"a1": "x"}, "listed": dict.fromkeys(("a1", "a2"), ["x"])}
        return replace(
            step,
            reward=rewards.get(self.mistake, step.reward),
            observations=texts.get(self.mistake, step.observations),
        )


def play(team: dict[str, Policy], **options: Any) -> list[Trajectory]:
    game = Careless(**options)
    return Parallel().rollout(game, game.tasks("train"), actors_of(team), 0, "cpu")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("mistake", "got"), [("one_too_many", "['a1', 'a2', 'a9']"), ("nothing_first", "NoneType")])
def test_l22_first_observations_name_who_was_shown_something(
    fit: Fit, capsys: pytest.CaptureFixture[str], mistake: str, got: str
) -> None:
    assert fit("--data.environment=test_known_limits.Careless", f"--data.environment.mistake={mistake}") == 2
    assert f"Careless returned observations of {got}, but its agents are ['a1', 'a2']" in the_message(capsys)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("one_missing", r"Careless returned observations of \['a1'\], but its agents are \['a1', 'a2'\]"),
        ("listed", r"Careless showed 'a1' \['x'\]; an observation is one text"),
    ],
    ids=["l22_number", "l23_type"],
)
def test_l22_l23_later_observations_are_one_text_for_each_agent(
    team: dict[str, Policy], mistake: str, message: str
) -> None:
    assert play(team, mistake=mistake, horizon=1)  # what is said after the last turn nobody reads
    with pytest.raises(ConfigurationError, match=message):
        play(team, mistake=mistake)


@pytest.mark.parametrize(
    ("mistake", "got"),
    [("one_each", r"\[0.5, 0.5\]"), ("no_reward", "None"), ("text_reward", "'0.5'")],
    ids=["l24_l25_one_each", "l26_none", "l24_text"],
)
def test_l24_l25_the_reward_is_one_number_of_the_team(team: dict[str, Policy], mistake: str, got: str) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"Careless \(task 'train_0'\) returned the reward {got}; the reward of a joint action is one number",
    ):
        play(team, mistake=mistake)


@pytest.mark.parametrize("algorithm", ["CoLLMCC", "MAGRPO"])
def test_l26_a_reward_that_is_not_finite_stops_the_run_with_evidence(
    fit: Fit, run_folder: Path, capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    options = [f"--model={algorithm}", "--data.num_generations=2", "--trainer.callbacks=null"]
    assert fit(*options, "--data.environment.bad_reward=nan", "--data.environment.horizon=1") == 1
    message = the_message(capsys)
    (line,) = (run_folder / "offending_episodes.jsonl").read_text().splitlines()
    assert f"a reward of task {json.loads(line)['task_id']!r} is not finite" in message
    assert "offending_episodes.jsonl" in message
    assert json.loads(line)["turns"][0]["reward"] != json.loads(line)["turns"][0]["reward"]  # NaN


def test_l27_an_error_in_a_reward_surfaces_once(team: dict[str, Policy]) -> None:
    Careless.num_steps = 0
    with pytest.raises(TypeError, match="takes 2 positional arguments"):
        play(team, mistake="type_error")
    assert Careless.num_steps == 1


# Teams and models: L28, L29


def test_l28_three_agents_are_trained(fit: Fit, run_folder: Path) -> None:
    options = ["--data.environment.num_agents=3", "--model=MAGRPO", "--data.num_generations=2"]
    assert fit(*options, "--trainer.callbacks+=capture.Capture", "--trainer.max_epochs=1") == 0
    assert set(Capture.learner.values()) == {"a1", "a2", "a3"}
    assert Capture.moved() == set(Capture.before)
    assert sorted(path.name for path in (run_folder / "agents").iterdir()) == ["a1", "a2", "a3"]


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("setting", "fragments"),
    [
        ("--model.policy.path=./nowhere", ["model folder './nowhere' does not exist", "hub name"]),
        ("--model.policies={a3: {path: tiny}}", ["model.policies names a3", "agents are a1, a2"]),
    ],
)
def test_l29_wrong_models_and_agents_are_named(
    fit: Fit, capsys: pytest.CaptureFixture[str], setting: str, fragments: list[str]
) -> None:
    assert fit(setting) == 2
    message = the_message(capsys)
    assert all(fragment in message for fragment in fragments), message


# What optimization needs: L30


def test_l30_gradients_are_clipped_and_rates_follow_a_schedule(fit: Fit, run_folder: Path, tiny_folder: str) -> None:
    options = [
        "--model=MAGRPO",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.weight_decay=0",  # the default of AdamW would be taken over
        "--model.policy.learning_rate=1",
        "--model.gradient_clip_norm=1e-4",
    ]
    options += ["--model.lr_schedule=torch.optim.lr_scheduler.ExponentialLR", "--model.lr_schedule.gamma=0.1"]
    assert fit(*options, "--data.num_generations=4", "--data.environment=test_known_limits.Wordy") == 0
    state, start = last(run_folder), AutoModelForCausalLM.from_pretrained(tiny_folder).state_dict()
    norms = list(read_run(run_folder).scalars["optim/grad_norm/a1"].values())
    assert min(norms) > 1e-2
    squares = [
        (weight - start[name.partition(".lm.")[2]]).square().sum()
        for name, weight in state["state_dict"].items()
        if name.startswith("backbones.<a1>.") and "lm_head" not in name
    ]
    # one step of size 1 and one of 0.1 along gradients of length 1e-4
    assert 0.8e-4 < torch.stack(squares).sum().sqrt() < 1.2e-4
    assert [one["param_groups"][0]["lr"] for one in state["optimizer_states"]] == pytest.approx([0.01, 0.01])


class Wordy(Toy):
    """The reward is the length of what was written, so that any two episodes differ."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.max_reward = 1000.0

    def step(self, state: Any, joint_action: Mapping[str, str]) -> Step:
        return replace(super().step(state, joint_action), reward=float(len("".join(joint_action.values()))))


def test_l30_the_seed_decides_everything(fit: Fit, finished: Path, run_folder: Path) -> None:
    for version, seed in enumerate((0, 1)):
        assert fit("--trainer.max_epochs=1", f"--seed_everything={seed}") == 0
        weights = last(run_folder.parent / f"version_{version}")["state_dict"]
        same = [weight.equal(weights[name]) for name, weight in last(finished)["state_dict"].items()]
        assert all(same) == (seed == 0)


def test_l30_tasks_are_shuffled_anew_in_every_pass() -> None:
    data = RolloutDataModule(Toy(num_tasks=6), tasks_per_rollout=6)
    passes = [[task.task_id for task in data.tasks_of(rollout)] for rollout in range(4)]
    listed = [task.task_id for task in Toy(num_tasks=6).tasks("train")]
    assert all(sorted(one) == listed for one in passes)
    assert len({tuple(one) for one in [*passes, listed]}) == 5


def test_l30_later_minibatches_are_weighted_by_the_importance_ratio() -> None:
    log_probs = torch.tensor([[-1.0]], requires_grad=True)
    one = torch.ones(1, 1)
    for ratio, clip, expected in ((1.0, None, -2.0), (1.5, None, -3.0), (1.5, 0.2, 0.0)):
        loss = policy_gradient_loss(log_probs, log_probs.detach() - torch.tensor(ratio).log(), 2 * one, one > 0, clip)
        (slope,) = torch.autograd.grad(loss, log_probs)
        assert slope.item() == pytest.approx(expected)


def test_l30_a_response_counts_with_the_sum_over_its_tokens(tiny_folder: str) -> None:
    """By definition: the action of the paper is the whole response, long or short."""
    policy = make_policy(tiny_folder, eos_bias=3.0)
    actions = written(policy, 6)
    trajectories = [
        Trajectory(Task(str(index), {}), index, 1, 1.0, [Turn({"a1": ""}, {"a1": action}, 0.0)])
        for index, action in enumerate(actions)
    ]
    batch = pad_sequences(action_sequences(trajectories, "a1"), 0, "cpu")
    sums = batch.sum_by_turn(batch.old_log_probs, (6, 1))[:, 0]
    assert_close(sums, torch.tensor([sum(action.log_probs) for action in actions]))


def test_l30_what_is_saved_can_be_loaded(finished: Path) -> None:
    for agent_id in ("a1", "a2"):
        folder = finished / "agents" / agent_id
        weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"
        trained = {name: weight for name, weight in last(finished)["state_dict"].items() if f".<{agent_id}>." in name}
        assert len(trained) > 10
        for name, weight in trained.items():
            assert_close(weights[name.partition(".lm.")[2]], weight, rtol=0, atol=0)


# The table


def test_the_table_has_every_row_and_names_these_tests() -> None:
    lines = (REPOSITORY / "docs" / "known_limits.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| L\d", line)]
    assert [row[0] for row in rows] == [f"L{number}" for number in range(1, 31)]
    tests = {name for name in globals() if name.startswith("test_l")}
    named = {number: re.findall(r"`(test_\w+)`", row[-1]) for number, row in enumerate(rows, 1)}
    assert all(row for row in rows if len(row) == 5)
    for number, names in named.items():
        assert names, number
        assert all(f"_l{number:02d}_" in name for name in names), number
    assert {name for names in named.values() for name in names} == tests
