"""What configuration files may hold: nothing in vain, and each of their folders its own matter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from collm.studies.study import deep_merged
from settings import vain
from toy import REPOSITORY

CONFIGS = REPOSITORY / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
STUDIES = sorted((CONFIGS / "studies").glob("*.yaml"))


class _Strict(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(set(keys)) == len(keys), f"{node.start_mark}: {keys}"
        return super().construct_mapping(node, deep)


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def layers(study: dict[str, Any]) -> Iterator[tuple[str, list[tuple[bool, dict[str, Any]]]]]:
    """For every cell and method of a study, what is read in which order: settings, and whether they are its own."""

    def read(part: dict[str, Any]) -> list[tuple[bool, dict[str, Any]]]:
        paths = part.get("configs", [])
        shipped = [(False, yaml.safe_load((REPOSITORY / path).read_text())) for path in paths]
        return [*shipped, (True, part.get("overrides", {}))]

    single = {name: study[name] for name in ("reference",) if name in study}
    methods = study["methods"] | study.get("untrained", {}) | study.get("policies", {}) | single
    for cell, settings in study.get("cells", {"": {}}).items():
        for label in settings.get("methods", methods):
            for candidate in methods[label].get("candidates", [{}]):
                stack = [*read(study), *read(settings), *read(methods[label]), (True, candidate)]
                yield f"{cell}/{label}", stack


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_are_in_one_style_and_no_key_is_given_twice(path: Path) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)*", name_of(path))
    assert yaml.load(path.read_text(), _Strict)  # noqa: S506


@pytest.mark.parametrize("path", [path for path in FILES if path not in STUDIES], ids=name_of)
def test_no_file_sets_anything_in_vain(path: Path) -> None:
    assert list(vain(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_no_study_sets_anything_in_vain(path: Path) -> None:
    found = set()
    for _, stack in layers(yaml.safe_load(path.read_text())):
        merged: dict[str, Any] = {}
        for is_own, settings in stack:
            if is_own:
                found |= set(vain(settings, merged))
            merged = deep_merged(merged, settings)
    assert found == set()


def test_vain_settings_are_found() -> None:
    relay = {"class_path": "collm.environments.games.relay.Relay", "init_args": {"horizon": 16, "alphabet": 4}}
    critic = {"class_path": "collm.critics.language_model.LanguageModelCritic", "init_args": {"epochs": 1}}
    model = {
        "class_path": "collm.algorithms.collm_cc.CoLLMCC",
        "init_args": {"critic": critic, "discount": 1.0, "gae_lambda": 0.5, "policy": {"path": "tiny"}},
    }
    given = {"data": {"environment": relay, "num_generations": 1, "tasks_per_rollout": 8}, "model": model}
    assert sorted(vain(given)) == [
        "data.environment.init_args.horizon: 16",
        "data.num_generations: 1",
        "model.init_args.critic.init_args.epochs: 1",
        "model.init_args.discount: 1.0",
    ]
    misplaced = {"model": {"init_args": {"critic": {"progress": False}, "clip": 1}}}
    assert sorted(vain(misplaced, given)) == [
        "model.init_args.clip is not taken",
        "model.init_args.critic.progress is not taken",
    ]
    undone = {"data": {"num_generations": 4}, "model": {"init_args": {"discount": 0.9}}}
    assert sorted(vain(given, undone)) == [
        "data.environment.init_args.horizon: 16",
        "model.init_args.critic.init_args.epochs: 1",
    ]


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("models", {"policy", "policies", "parameters", "optimizer"}),  # weights, how they are trained, and sampling
        ("critics", {"critic"}),
    ],
)
def test_models_and_critics_leave_the_objective_alone(room: str, allowed: set[str]) -> None:
    paths = sorted((CONFIGS / room).glob("*.yaml"))
    assert paths
    for path in paths:
        settings = yaml.safe_load(path.read_text())
        assert set(settings) == {"model"}
        assert set(settings["model"]) == {"init_args"}
        assert set(settings["model"]["init_args"]) <= allowed, path.name
