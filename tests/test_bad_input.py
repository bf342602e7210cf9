"""Bad settings, files and environments: one message with the value, the name and what is right, before weights load."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest
import torch

import collm.algorithms
import collm.callbacks
import collm.critics
import collm.environments
import collm.samplers
import collm.studies
from collm import cli
from collm.data import RolloutDataModule
from collm.environments.base import Step
from collm.environments.contract import (
    begun,
    check_environment,
    check_names_of_metrics,
    measured,
    pictured,
    stepped,
    tasks_of,
)
from collm.environments.games.relay import Relay
from collm.environments.writing.texts import load_texts
from collm.errors import ConfigurationError, shortened
from collm.metrics import episode_numbers
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.runtime.checks import Count, Range, ShareAboveZero, check_number, checked, shown
from collm.runtime.command import run_command
from collm.samplers.tree import Tree
from collm.trajectory import Action, Task, Trajectory, Turn, collate
from toy import REPOSITORY, Toy

Fit = Callable[..., int]


def the_message(capsys: pytest.CaptureFixture[str]) -> str:
    """What a failed run had to say: one message of bounded length, no traceback."""
    written = capsys.readouterr().err
    assert "Traceback" not in written
    assert written.count("error: ") == 1
    message = written.partition("error: ")[2].partition("\n(COLLM_TRACEBACK")[0]
    assert len(message) < 2100
    return message


# Settings of the command line

SETTINGS = {
    "seed_negative": (["--seed_everything=-5"], ["seed_everything is -5", "of at least 0"]),
    "seed_too_large": (["--seed_everything=8589934592"], ["seed_everything is 8589934592", "at most 4,294,967,295"]),
    "no_train_batches": (["--trainer.limit_train_batches=0"], ["limit_train_batches is 0", "fit would do nothing"]),
    "share_of_nothing": (["--trainer.limit_train_batches=0.01"], ["limit_train_batches is 0.01", "do nothing"]),
    "overfit": (["--trainer.overfit_batches=0.5"], ["overfit_batches is 0.5", "new rollout"]),
    "no_epochs": (["--trainer.max_epochs=0"], ["trainer.max_epochs is 0", "at least 1", "-1"]),
    "no_time": (["--trainer.max_time=00:00:00:00"], ["trainer.max_time", "nothing happens"]),
    "min_steps": (["--trainer.min_steps=5"], ["trainer.min_steps is 5", "trainer.max_epochs"]),
    "no_rollouts": (["--data.rollouts_per_epoch=0"], ["data.rollouts_per_epoch is 0", "at least 1"]),
    "no_evaluation_batch": (["--data.eval_batch_size=0"], ["data.eval_batch_size is 0", "at least 1"]),
    "devices_word": (["--trainer.devices=abc"], ["trainer: `devices`", "int > 0"]),
    "devices_negative": (["--trainer.devices=-3"], ["trainer: `devices`", "int > 0"]),
    "devices_without_cores": (["--trainer.devices=100000"], ["trainer.devices is 100000", "cores"]),
    "accelerator": (["--trainer.accelerator=gpux"], ["trainer: ", "gpux", "cpu"]),
    "strategy": (["--trainer.strategy=foo"], ["trainer: ", "strategy='foo'", "ddp"]),
    "precision": (["--trainer.precision=foo"], ["trainer.precision", "foo", "bf16-mixed"]),
    "num_nodes": (["--trainer.num_nodes=0"], ["trainer.num_nodes is 0", "at least 1"]),
    "val_interval_zero": (["--trainer.val_check_interval=0"], ["trainer.val_check_interval is 0", "at least 1"]),
    "val_interval_share": (["--trainer.val_check_interval=2.5"], ["trainer.val_check_interval is 2.5", "(0, 1]"]),
    "val_interval_long": (["--trainer.val_check_interval=99"], ["val_check_interval is 99", "at most 1", "rollouts"]),
    "val_interval_nan": (["--trainer.val_check_interval=.nan"], ["val_check_interval is nan", "(0, 1]"]),
    "val_epochs": (["--trainer.check_val_every_n_epoch=0"], ["check_val_every_n_epoch is 0", "at least 1"]),
    "sanity_steps": (["--trainer.num_sanity_val_steps=-2"], ["num_sanity_val_steps is -2", "at least -1"]),
    "log_steps": (["--trainer.log_every_n_steps=-1"], ["log_every_n_steps is -1", "at least 0"]),
    "num_generations": (["--data.num_generations=1000000000000000000"], ["data.num_generations is 10000000000000000"]),
    "horizon": (["--data.environment.horizon=1000000000"], ["Toy.horizon is 1000000000", "at most 1,000,000"]),
    "joint_samples": (
        ["--data.num_generations=1000000", "--data.environment.horizon=3"],
        ["2 tasks at once", "1,000,000 episodes of each", "6,000,000 joint samples", "12,000,000 responses"],
    ),
    "evaluation": (
        ["--data.eval_episodes_per_task=1000000"],
        ["data.eval_episodes_per_task", "2,000,000 joint samples", "4,000,000 responses"],
    ),
    "learning_rate": (["--model.policy.learning_rate=.nan"], ["learning_rate is nan", "above 0"]),
    "weight_decay": (["--model.optimizer.weight_decay=.nan"], ["model.optimizer", "weight_decay", "nan"]),
    "momentum": (
        ["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=.nan"],
        ["model.optimizer", "momentum is nan"],
    ),
    "schedule": (
        ["--model.lr_schedule=torch.optim.lr_scheduler.StepLR", "--model.lr_schedule.step_size=0"],
        ["model.lr_schedule", "modulo by zero"],
    ),
    "schedule_nan": (
        ["--model.lr_schedule=torch.optim.lr_scheduler.ExponentialLR", "--model.lr_schedule.gamma=.nan"],
        ["model.lr_schedule", "gamma is nan"],
    ),
    "typo_in_constructor": (["--data.environment=own.Typo"], ["NameError", "naem", "own.py line 5, in __init__"]),
    "package_missing": (["--data.environment=needs.Env"], ["data.environment: ", "'torhc'", "install it"]),
    "not_python": (["--data.environment=unreadable.Env"], ["SyntaxError", "unreadable.py line 1: def f(:"]),
}

OWN = """\
from toy import Toy

class Typo(Toy):
    def __init__(self):
        self.agent_ids = naem

class Late(Toy):
    def step(self, state, joint_action):
        return state.nowhere
"""


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of a user in the working folder."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "needs.py").write_text("import torhc\n")
    (tmp_path / "unreadable.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("own", "needs", "unreadable"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("no_weights", "own_modules")
@pytest.mark.parametrize(("args", "fragments"), SETTINGS.values(), ids=SETTINGS)
def test_a_bad_setting_is_refused_in_one_message(
    fit: Fit, capsys: pytest.CaptureFixture[str], args: list[str], fragments: list[str]
) -> None:
    assert fit(*args) == (1 if "unreadable" in args[0] else 2)
    message = the_message(capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("command", "kind"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_evaluations_of_nothing_are_refused(
    fit: Fit, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    assert fit(f"--trainer.limit_{kind}_batches=0", command=command) == 2
    assert f"trainer.limit_{kind}_batches is 0, so that {command} would do nothing" in the_message(capsys)


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["--model.gae_lambda=1", "--model=CoLLMCC"], ["'gae_lambda'", "no algorithm is chosen yet", "--model=..."]),
        (["--model.discount=0.9", "--data.environment=StrBuild"], ["no algorithm is chosen yet", "--model=CoLLMCC"]),
        (["--data.environment.horizon=1"], ["data.environment: no class is chosen yet", "--data.environment=..."]),
    ],
)
def test_a_setting_in_front_of_its_class(
    capsys: pytest.CaptureFixture[str], args: list[str], fragments: list[str]
) -> None:
    assert cli.main(REPOSITORY / "configs" / "base.yaml", ["fit", *args]) == 2
    message = the_message(capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.usefixtures("own_modules")
def test_a_typo_in_a_method_of_a_users_class_names_its_line(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--data.environment=own.Late") == 1
    message = the_message(capsys)
    assert message.startswith("AttributeError: 'tuple' object has no attribute 'nowhere'")
    assert "own.py line 9, in step: return state.nowhere" in message


# Files

LINE = "first: caf\xe9\n"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES: dict[str, tuple[bytes, list[str]]] = {
    "twice": (b"data:\n  seed: 1\n  seed: 2\n", ["bad.yaml line 3", "'seed' is set twice"]),
    "twice_in_flow": (b"data: {seed: 1, seed: 2}\n", ["bad.yaml line 1", "'seed' is set twice"]),
    "section_twice": (b"data: {}\nmodel: {}\ndata: {}\n", ["bad.yaml line 3", "'data' is set twice"]),
    "latin": (b"# a\n" + LINE.encode("latin1"), ["bad.yaml line 2", "not UTF-8", "byte 15"]),
    "utf16": ("data: {}\n".encode("utf-16"), ["bad.yaml line 1", "not UTF-8"]),
    "bomb": (BOMB.encode(), ["bad.yaml line 5", "100,000 values"]),
    "alias_in_itself": (b"a: &a [*a]\n", ["bad.yaml line 1", "alias"]),
    "list": (b"- a\n", ["bad.yaml holds list"]),
    "empty": (b"\n", ["bad.yaml holds nothing"]),
    "number_as_name": (b"1: 2\n", ["bad.yaml", "1 is not the name"]),
    "not_yaml": (b"model: [\n", ["bad.yaml line 2"]),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("content", "fragments"), FILES.values(), ids=FILES)
def test_a_bad_configuration_file_is_refused_with_its_line(
    fit: Fit, capsys: pytest.CaptureFixture[str], content: bytes, fragments: list[str]
) -> None:
    Path("bad.yaml").write_bytes(content)
    began = time.monotonic()
    assert fit("--config=bad.yaml") == 2
    message = the_message(capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("no_weights")
def test_a_file_within_a_configuration_is_read_as_strictly(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("environment.yaml").write_text("class_path: toy.Toy\ninit_args:\n  horizon: 1\n  horizon: 2\n")
    assert fit("--data.environment=environment.yaml") == 2
    message = the_message(capsys)
    assert "environment.yaml: 'horizon' is set twice" in message
    assert "line 4" in message


def test_commands_read_files_as_strictly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"# \xff\n")
    monkeypatch.setattr(sys, "argv", ["command", f"--config={tmp_path / 'bad.yaml'}"])
    monkeypatch.setattr("signal.signal", lambda *args: None)
    assert run_command(a_command) == 2
    assert "bad.yaml line 1 is not UTF-8" in capsys.readouterr().err


def a_command(number: int = 1) -> None:
    """A command.

    Args:
        number: Any.
    """


def test_merge_keys_and_modest_aliases_are_read(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.yaml").write_text("trainer:\n  <<: {max_epochs: 1}\n  max_epochs: 3\n")
    with pytest.raises(SystemExit):
        fit("--config=good.yaml", "--print_config")
    assert "max_epochs: 3" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_lone_surrogate_is_named_with_file_and_line(tmp_path: Path, name: str) -> None:
    rows = ['{"prompt": "fine"}', '{"prompt": "ab\\ud83dc"}']
    (tmp_path / name).write_text("\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]")
    where = "line 2" if name == "a.jsonl" else "entry 2"
    with pytest.raises(ConfigurationError, match=rf"{name} {where}, field 'prompt': character 3 .*\\ud83d"):
        load_texts(str(tmp_path / name), "prompt", "")


def test_both_halves_of_a_surrogate_pair_are_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "\\ud83d\\ude00"}\n')
    (source,) = load_texts(str(tmp_path / "a.jsonl"), "prompt", "")
    assert source.fields["prompt"] == "\U0001f600"


@pytest.mark.parametrize("line", ["[" * 100_000, '{"prompt": ' + "9" * 5000 + "}"])
def test_rows_that_a_json_parser_cannot_take_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigurationError, match=r"a\.jsonl line 2 is not JSON"):
        load_texts(str(tmp_path / "a.jsonl"), "prompt", "")


# Numbers of every constructor


def constructors() -> Iterator[tuple[type, str, bool]]:
    """Every argument that is annotated as a number, of every class a configuration can name."""
    packages = (
        *(collm.algorithms, collm.critics, collm.environments, collm.samplers, collm.callbacks),
        collm.studies,
    )
    classes: dict[type, None] = {PolicySpec: None, ModelSpec: None}
    for package in packages:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            found = vars(importlib.import_module(module.name))
            classes |= {
                cls: None
                for cls in found.values()
                if inspect.isclass(cls)
                and cls.__module__ == module.name
                and any(base.__name__ in BASES for base in cls.__mro__[1:])
                and not inspect.isabstract(cls)
                and cls.__name__
                not in ("MultiAgentModule", "ActorCritic", "MonteCarlo", "Conversation", "BuildingGame")
            }
    for cls in classes:
        for owner in [cls, *cls.__mro__[1:]]:
            if owner.__module__.startswith("collm.") and "__init__" in vars(owner):
                for name, kind in get_type_hints(owner.__init__).items():
                    if kind in (int, float, int | None, float | None):
                        yield cls, name, kind in (int, int | None)
                if not any(p.kind == p.VAR_KEYWORD for p in inspect.signature(owner).parameters.values()):
                    break


BASES = ("Environment", "Sampler", "MultiAgentModule", "Callback", "Critic")
ARGUMENTS = sorted({(cls.__name__, name): (cls, name, whole) for cls, name, whole in constructors()}.items())
NEEDED: dict[str, dict[str, Any]] = {
    "MeasureCeiling": {"out": "x"},
    "MeasureEpisodes": {"path": "x.json"},
    "MeasureGradients": {"path": "x.json"},
    "PettingZooText": {"make": "zoo.Constant", "min_reward": 0.0, "max_reward": 1.0, "horizon": 2},
    "RewardFunctionTask": {
        "dataset": "samples",
        "reward": "collm.environments.example_rewards.fence",
        "templates": {"left": "{plan}", "right": "{plan}"},
    },
}


def make(cls: type, **arguments: Any) -> Any:
    """An object of `cls` that has seen all its own checks."""
    if cls in (PolicySpec, ModelSpec):
        return cls(**arguments).check("policy")
    if issubclass(cls, collm.algorithms.base.MultiAgentModule):
        return cls(agent_ids=["a1", "a2"], **arguments)
    return cls(**{**NEEDED.get(cls.__name__, {}), **arguments})


def test_the_arguments_are_all_found() -> None:
    names = {name for name, _ in ARGUMENTS}
    assert len(ARGUMENTS) > 150
    assert {("PolicySpec", "learning_rate"), ("CoLLMCC", "kl_weight"), ("CoLLMCC", "gae_lambda")} <= names
    assert {("Relay", "noise"), ("Coding", "horizon"), ("Tree", "max_joint_samples")} <= names


@pytest.mark.parametrize(
    ("cls", "name", "whole"), [of for _, of in ARGUMENTS], ids=[".".join(of) for of, _ in ARGUMENTS]
)
def test_every_number_is_held_to_a_range(cls: type, name: str, whole: bool) -> None:
    bad: list[Any] = [float("nan"), float("inf"), True, "x"]
    if whole:
        bad += [1.5] if name in ("seed", "mapping", "data_seed") else [-1, 1.5, 10**18]
    for value in bad:
        began = time.monotonic()
        with pytest.raises(ConfigurationError) as raised:
            make(cls, **{name: value})
        assert name in str(raised.value)
        assert str(value) in str(raised.value)
        assert len(str(raised.value)) < 400
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "name", ["tasks_per_rollout", "num_generations", "rollouts_per_epoch", "eval_batch_size", "seed"]
)
@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), True, 2**33, "x", None])
def test_numbers_of_the_data_are_held_to_a_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"data.{name} is "):
        RolloutDataModule(Toy(), **{name: value})


def test_a_tree_beyond_all_numbers_is_refused_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"more than 1,000,001,000,000 joint samples|more than"):
        Tree("cross").check(Toy(horizon=1_000_000), 2, 1000)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (Range(0, 1), [0, 1, 0.5, np.float32(0.5)], [-0.1, 1.1, float("nan"), None, True, "0", 10**400], "in [0, 1]"),
        (Range(0, 1, above=True), [1, 1e-9], [0, -1], "in (0, 1]"),
        (Range(0, 1, below=True), [0, 0.99], [1], "in [0, 1)"),
        (Range(1, 9, whole=True), [1, 9, np.int64(3)], [0, 10, 1.0, True], "of at least 1 and at most 9"),
        (Range(0, above=True).or_none, [None, 1e300], [0, float("inf")], "above 0, or null"),
    ],
)
def test_ranges(allowed: Range, inside: list[Any], outside: list[Any], text: str) -> None:
    assert [value for value in inside if value not in allowed] == []
    for value in outside:
        with pytest.raises(ConfigurationError) as raised:
            check_number("x", value, allowed)
        assert text in str(raised.value)


class Annotated:
    """A class whose arguments are checked against their annotations."""

    @checked
    def __init__(
        self, turns: Count, share: ShareAboveZero | None = None, kind: Literal["a", "b"] = "a", on: bool = False
    ) -> None:
        self.given = (turns, share, kind, on)


def test_arguments_are_checked_against_their_annotations() -> None:
    assert Annotated(3).given == (3, None, "a", False)
    assert Annotated(1, 0.5, kind="b", on=True).given == (1, 0.5, "b", True)
    for arguments, message in (
        ({"turns": 0}, "Annotated.turns is 0; it must be a whole number of at least 1 and at most 1,000,000,000."),
        ({"turns": None}, "Annotated.turns is None; it must be a whole number"),
        ({"turns": 1, "share": 0}, "Annotated.share is 0; it must be a number in (0, 1], or null."),
        ({"turns": 1, "kind": "c"}, "Annotated.kind is 'c'; choose one of a, b."),
        ({"turns": 1, "on": 1}, "Annotated.on is 1; give true or false."),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            Annotated(**arguments)
    with pytest.raises(TypeError, match="turns"):
        Annotated()


def test_messages_have_a_bounded_length() -> None:
    assert shown("x" * 1000) == "'" + "x" * 96 + "..."
    assert shown(10**5000) == "a whole number of about 5000 digits"
    assert shortened("ab", 10) == "ab"
    assert shortened("a" * 10**6 + "z", 10) == "aaaaa [...] aaaaz"


# What environments are and return


def changed(**attributes: Any) -> Toy:
    """The toy game with other attributes or methods."""
    environment = Toy()
    for name, value in attributes.items():
        setattr(environment, name, value)
    return environment


@pytest.mark.parametrize(
    ("attributes", "fragment"),
    [
        ({"horizon": 0}, "Toy.horizon is 0; it must be a whole number of at least 1"),
        ({"horizon": 2.0}, "Toy.horizon is 2.0"),
        ({"horizon": True}, "Toy.horizon is True"),
        ({"min_reward": 2.0}, "Toy.min_reward is 2.0 and Toy.max_reward is 1.0; swap them"),
        ({"max_reward": float("nan")}, "Toy.max_reward is nan"),
        ({"min_reward": None}, "Toy.min_reward is None"),
        ({"agent_ids": "ab"}, "Toy.agent_ids is 'ab'"),
        ({"agent_ids": ()}, "Toy.agent_ids is ()"),
        ({"agent_ids": (1, 2)}, "Toy.agent_ids is (1, 2)"),
        ({"agent_ids": None}, "Toy.agent_ids is None"),
        ({"agent_ids": tuple(map(str, range(1001)))}, "the number of agents is 1001"),
        ({"tasks": lambda split: None}, "Toy.tasks('train') returned None"),
        ({"tasks": lambda split: ["t"]}, "Toy.tasks('train') holds 't'"),
        ({"tasks": lambda split: [Task(1, {})]}, "Toy.tasks('train') holds Task("),
        ({"tasks": lambda split: [Task("\ud800", {})]}, "lone surrogate"),
    ],
)
def test_an_environment_with_bad_attributes_is_refused(attributes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        RolloutDataModule(changed(**attributes))
    assert fragment in str(raised.value)


def test_an_environment_without_an_attribute_is_refused() -> None:
    environment = Toy()
    del environment.horizon
    with pytest.raises(ConfigurationError, match="Toy has no attribute 'horizon'"):
        check_environment(environment)


class Zero(Toy):
    """A class attribute nobody noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.horizon = 0


@pytest.mark.usefixtures("no_weights")
def test_a_horizon_of_zero_is_refused_by_the_command_line(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toy.Zero", Zero, raising=False)
    assert fit("--data.environment=toy.Zero") == 2
    assert "Zero.horizon is 0" in the_message(capsys)


ANSWERS = {"a1": "x", "a2": "x"}
CYCLE: dict[str, Any] = {}
CYCLE["again"] = CYCLE
STEPS: dict[str, tuple[Any, str]] = {
    "none": (None, "returned None from step; return a Step"),
    "tuple": ((0, ANSWERS, 1.0), "returned (0, "),
    "high": (Step(0, ANSWERS, 1.5), "the reward 1.5, outside its range from min_reward 0.0 to max_reward 1.0"),
    "low": (Step(0, ANSWERS, -0.1), "the reward -0.1, outside its range from min_reward 0.0 to max_reward 1.0"),
    "reward_text": (Step(0, ANSWERS, "1"), "the reward '1'"),
    "reward_none": (Step(0, ANSWERS, None), "the reward None"),
    "reward_tensor": (Step(0, ANSWERS, torch.tensor(1.0)), "the reward tensor"),
    "reward_by_agent": (Step(0, ANSWERS, {"a1": 1.0}), "the reward {"),
    "terms_list": (Step(0, ANSWERS, 1.0, [1.0]), "Step.terms is [1.0]"),
    "terms_none": (Step(0, ANSWERS, 1.0, None), "Step.terms is None"),
    "terms_nan": (Step(0, ANSWERS, 1.0, {"a": float("nan")}), "Step.terms has 'a': nan"),
    "terms_text": (Step(0, ANSWERS, 1.0, {"a": "1"}), "Step.terms has 'a': '1'"),
    "terms_key": (Step(0, ANSWERS, 1.0, {1: 1.0}), "Step.terms has 1: 1.0"),
    "terminated_number": (Step(0, ANSWERS, 1.0, {}, 1), "Step.terminated is 1"),
    "terminated_text": (Step(0, ANSWERS, 1.0, {}, "no"), "Step.terminated is 'no'"),
    "terminated_none": (Step(0, ANSWERS, 1.0, {}, None), "Step.terminated is None"),
    "info_none": (Step(0, ANSWERS, 1.0, {}, False, None), "Step.info is None"),
    "info_list": (Step(0, ANSWERS, 1.0, {}, False, ["a"]), "Step.info is ['a']"),
    "info_object": (Step(0, ANSWERS, 1.0, {}, False, {"a": {1}}), "Step.info cannot be written"),
    "info_array": (Step(0, ANSWERS, 1.0, {}, False, {"a": np.zeros(2)}), "Step.info cannot be written"),
    "info_cycle": (Step(0, ANSWERS, 1.0, {}, False, CYCLE), "Step.info cannot be written"),
}


@pytest.mark.parametrize(("outcome", "fragment"), STEPS.values(), ids=STEPS)
def test_a_bad_step_is_refused_with_environment_and_task(outcome: Any, fragment: str) -> None:
    environment = changed(step=lambda state, joint_action: outcome)
    with pytest.raises(ConfigurationError) as raised:
        stepped(environment, [Task("train_0", {})], [0], [ANSWERS])
    assert "Toy (task 'train_0')" in str(raised.value)
    assert fragment in str(raised.value)


@pytest.mark.parametrize("reward", [0, 1, 1 + 1e-9, -1e-9, np.float32(0.5), True])
def test_rewards_in_range_are_taken(reward: Any) -> None:
    environment = changed(step=lambda state, joint_action: Step(0, ANSWERS, reward, {"a": 1}, np.True_, {"b": [None]}))
    (step,) = stepped(environment, [Task("t", {})], [0], [ANSWERS])
    assert step.reward == reward


def test_noise_may_take_a_reward_out_of_its_range() -> None:
    relay = Relay(horizon=1, noise=5.0, num_agents=1, feedback="own")
    task = relay.tasks("train")[0]
    rewards = []
    for seed in range(20):
        state, _ = begun(relay, task, random.Random(seed))
        (step,) = stepped(relay, [task], [state], [{"relay_1": "a0"}])
        rewards.append(step.reward)
    assert min(rewards) < relay.min_reward
    assert max(rewards) > relay.max_reward


@pytest.mark.parametrize("outcomes", [None, [], [Step(0, {}, 0.0)] * 2, iter([])])
def test_a_batch_of_steps_must_fit_its_episodes(outcomes: Any) -> None:
    environment = changed(step_batch=lambda states, joint_actions: outcomes)
    with pytest.raises(ConfigurationError, match=r"Toy.step_batch returned .* for 1 episodes"):
        stepped(environment, [Task("t", {})], [0], [ANSWERS])


@pytest.mark.parametrize(
    ("outcome", "fragment"),
    [
        (None, "Toy.reset returned None for task 't'"),
        (ANSWERS, "Toy.reset returned {"),
        ((0, ANSWERS, 1), "Toy.reset returned (0"),
        ((0, {"a1": "x"}), "observations of ['a1'], but its agents are ['a1', 'a2']"),
        ((0, {**ANSWERS, "b": "x"}), "observations of ['a1', 'a2', 'b']"),
        ((0, ["x", "x"]), "observations of list"),
        ((0, {"a1": "x", "a2": None}), "showed 'a2' None"),
        ((0, {"a1": "x", "a2": ["x"]}), "showed 'a2' ['x']"),
        ((0, {"a1": "x", "a2": b"x"}), "showed 'a2' b'x'"),
        ((0, {"a1": "x", "a2": "\udfff"}), "lone surrogate"),
    ],
)
def test_a_bad_beginning_is_refused(outcome: Any, fragment: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        begun(changed(reset=lambda task, rng: outcome), Task("t", {}), random.Random(0))
    assert fragment in str(raised.value)


def played() -> Trajectory:
    """An episode of one turn."""
    actions = {agent_id: Action("x") for agent_id in ANSWERS}
    return Trajectory(Task("t", {}), 0, 1, 1.0, [Turn(ANSWERS, actions, 1.0)])


@pytest.mark.parametrize(
    "metrics", [None, [1.0], {"a": "1"}, {"a": None}, {"a": float("nan")}, {1: 1.0}, {"a": torch.ones(1)}]
)
def test_metrics_must_be_floats_by_name(metrics: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Toy \(task 't'\): what metrics returned (is|has)"):
        measured(changed(metrics=lambda trajectory: metrics), played())


@pytest.mark.parametrize("name", ["return", "return_low", "turns", "failed", "latency/a", "truncated/a1", "reward/b"])
def test_metrics_must_not_have_names_of_the_run(name: str) -> None:
    trajectory = played()
    trajectory.turns[0].terms = {"b": 1.0}
    others = {"a/return": 0.0, "reward/a": 0.0, "truncated": 0.0}
    assert measured(changed(metrics=lambda trajectory: others), trajectory) == others
    environment = changed(metrics=lambda trajectory: {**others, name: 1.0})
    with pytest.raises(
        ConfigurationError, match=rf"Toy \(task 't'\): what metrics returned has '{name}', a name under"
    ):
        measured(environment, trajectory)


def test_every_name_that_a_run_logs_is_refused() -> None:
    numbers = episode_numbers(collate([played()]))
    assert {"return", "turns", "failed"} < set(numbers)
    for name in numbers:
        with pytest.raises(ConfigurationError, match="give the metric another"):
            check_names_of_metrics("what metrics returned", [name])


def test_good_metrics_are_taken() -> None:
    assert measured(changed(metrics=lambda trajectory: {"a": 1, "b": True}), played()) == {"a": 1, "b": True}


@pytest.mark.parametrize("picture", [np.zeros((2, 2)), np.zeros((2, 2, 3)), [[0]], np.zeros((0, 2, 3), np.uint8)])
def test_pictures_must_be_pixels(picture: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Toy\.render returned"):
        pictured(changed(render=lambda trajectory: picture), played())


class Outside(Toy):
    """A reward beyond what was declared."""

    def step(self, state: Any, joint_action: Any) -> Step:
        return Step(state, ANSWERS, 7.0)


class Vague(Toy):
    """Metrics that are not numbers."""

    def metrics(self, trajectory: Trajectory) -> Any:
        return {"last": "high"}


@pytest.mark.parametrize(
    ("cls", "fragments"),
    [
        (Outside, ["Outside (task 'eval_0')", "the reward 7.0", "from min_reward 0.0 to max_reward 1.0"]),
        (Vague, ["Vague (task 'eval_0')", "metrics", "'last': 'high'"]),
    ],
)
def test_a_run_stops_at_what_an_environment_must_not_return(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cls: type, fragments: list[str]
) -> None:
    monkeypatch.setattr(f"toy.{cls.__name__}", cls, raising=False)
    assert fit(f"--data.environment=toy.{cls.__name__}") == 2
    message = the_message(capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def test_transcripts_of_shipped_environments_are_plain_data() -> None:
    tasks = tasks_of(Toy(), "train")
    (step,) = stepped(Toy(), tasks[:1], [(tasks[0], 0)], [ANSWERS])
    assert json.loads(json.dumps(step.info)) == {"lines": 2}
    assert partial(check_environment, Toy())() is None
