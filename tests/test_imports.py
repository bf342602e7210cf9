"""Imports inside the package point one way, so that each room can be read, tested and replaced on its own."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "collm"
MAX_LINES = 300


@dataclass(frozen=True)
class Rule:
    """What a room may import besides the standard library.

    Args:
        rooms: Modules of this package that may be imported, with all that lies under them; None for any but `cli`.
        only: Third-party packages that may be imported; None for any.
        never: Third-party packages that must not be imported.
        cli: Whether the command line may be imported, by what starts whole runs.
    """

    rooms: frozenset[str] | None = None
    only: frozenset[str] | None = None
    never: frozenset[str] = frozenset()
    cli: bool = False


def rooms(*names: str) -> frozenset[str]:
    return frozenset(f"collm.{name}" for name in names)


def studies(*names: str) -> frozenset[str]:
    return rooms(*(f"studies.{name}" for name in names))


LIGHTNING = frozenset({"lightning", "lightning_fabric", "pytorch_lightning"})
MODELS = frozenset({"transformers", "peft"})
TORCH = frozenset({"torch"})

# A name rules all that lies under it. Modules that are not listed may import any room but `cli`, which none imports.
RULES = {
    "collm.errors": Rule(rooms(), only=frozenset()),
    "collm.sampling_mask": Rule(rooms(), only=TORCH),
    "collm.rollout_tree": Rule(rooms(), only=TORCH),
    "collm.trajectory": Rule(rooms("sampling_mask", "rollout_tree"), only=TORCH),
    "collm.packing": Rule(rooms("trajectory", "sampling_mask"), only=TORCH),
    "collm.returns": Rule(rooms(), only=TORCH),
    "collm.algorithms.optimizers": Rule(rooms("errors"), only=TORCH),
    "collm.objectives": Rule(rooms("returns"), only=TORCH),
    "collm.runtime.files": Rule(rooms("errors"), only=TORCH | {"safetensors"}),
    "collm.runtime.resuming": Rule(rooms("errors", "runtime")),
    "collm.runtime.run_folder": Rule(rooms("errors", "runtime")),
    "collm.runtime.progress": Rule(rooms(), only=frozenset()),
    "collm.runtime.naming": Rule(rooms("errors"), only=TORCH),
    "collm.runtime.hub": Rule(rooms(), only=frozenset({"huggingface_hub"})),
    "collm.runtime.checks": Rule(rooms("errors"), only=frozenset()),
    "collm.runtime.versions": Rule(rooms("errors"), only=frozenset({"packaging"})),
    "collm.runtime.configuration": Rule(rooms("errors"), only=frozenset({"jsonargparse", "yaml"})),
    "collm.runtime.messages": Rule(rooms(), only=frozenset({"jsonargparse"})),
    "collm.runtime.command": Rule(
        rooms("errors", "runtime.configuration", "runtime.terminal"), only=frozenset({"jsonargparse"})
    ),
    "collm.replay": Rule(rooms("errors", "runtime.files", "runtime.command", "replay"), only=frozenset()),
    "collm.runtime.trainer_settings": Rule(rooms("errors", "runtime.checks")),
    "collm.runtime": Rule(rooms(), only=TORCH),
    "collm.environments": Rule(
        rooms("runtime.checks", "runtime.hub", "trajectory", "errors", "sandbox", "environments"),
        never=TORCH | MODELS | LIGHTNING,
    ),
    # Workers that run a model's code start fast because nothing large is imported.
    "collm.sandbox": Rule(rooms("errors", "runtime.checks", "sandbox"), never=TORCH | MODELS | LIGHTNING),
    # What trains knows nothing of what generates; `models` import `kernels` inside functions only, behind a switch.
    "collm.architectures": Rule(rooms("architectures"), never=LIGHTNING),
    "collm.kernels": Rule(rooms("architectures", "kernels"), never=LIGHTNING),
    "collm.models": Rule(
        rooms("trajectory", "sampling_mask", "packing", "errors", "runtime", "architectures", "kernels", "models"),
        never=LIGHTNING,
    ),
    "collm.inference.embedded": Rule(
        rooms("trajectory", "sampling_mask", "packing", "errors", "runtime", "architectures", "kernels", "models")
        | rooms("inference.base", "inference.sampling", "inference.trial", "inference.embedded"),
        never=LIGHTNING,
    ),
    "collm.inference.endpoint": Rule(
        rooms("trajectory", "sampling_mask", "errors", "models", "inference.base", "inference.sampling")
        | rooms("inference.endpoint", "runtime.collectives", "runtime.progress"),
        never=LIGHTNING | {"transformers", "peft"},
    ),
    # Engines are imported by name when they are used, so none of the others imports the embedded one.
    "collm.inference": Rule(
        rooms("trajectory", "sampling_mask", "packing", "errors", "runtime", "architectures", "models")
        | rooms(
            "inference.base", "inference.sampling", "inference.trial", "inference.vllm_masks", "inference.vllm_model"
        ),
        never=LIGHTNING,
    ),
    # A served agent is no run: nothing of the training loop.
    "collm.serving": Rule(
        rooms("models", "inference", "errors", "runtime", "trajectory", "sampling_mask")
        | rooms("environments", "samplers", "metrics")
        | rooms("serving"),
        never=LIGHTNING,
    ),
    "collm.critics": Rule(
        rooms("trajectory", "packing", "errors", "returns", "objectives", "runtime", "models", "critics"),
        never=LIGHTNING,
    ),
    "collm.samplers": Rule(
        rooms("trajectory", "rollout_tree", "packing", "environments.base", "environments.contract")
        | rooms("errors", "runtime", "samplers"),
        never=LIGHTNING | {"transformers"},
    ),
    "collm.rollouts.epochs": Rule(rooms("trajectory", "runtime", "rollouts.ahead"), never=LIGHTNING),
    "collm.rollouts": Rule(rooms("inference.actors", "trajectory", "runtime"), never=LIGHTNING),
    "collm.data": Rule(
        rooms("samplers", "environments.base", "environments.contract", "trajectory", "errors", "returns", "runtime")
        | rooms("inference.actors", "rollouts")
    ),
    "collm.algorithms": Rule(
        rooms(
            *("models", "critics", "returns", "objectives", "trajectory", "packing", "metrics", "errors"),
            "runtime",
            *("algorithms.base", "algorithms.actor_critic", "algorithms.monte_carlo", "algorithms.checkpoints"),
            *("algorithms.settings", "algorithms.agents", "algorithms.optimizers", "algorithms.rollout_hooks"),
        )
    ),
    "collm.strategies": Rule(rooms("models", "critics", "errors", "runtime", "strategies")),
    "collm.callbacks": Rule(
        rooms("environments.base", "environments.contract", "trajectory", "errors", "metrics", "runtime", "callbacks")
        | rooms("replay")
    ),
    "collm.commands": Rule(cli=True),
    "collm.benchmark": Rule(cli=True),
    "collm.studies.ceiling": Rule(cli=True),
    "collm.studies.variance": Rule(rooms("metrics"), only=TORCH | {"numpy"}),
    "collm.studies.tables": Rule(rooms("runtime.files"), only=frozenset()),
    "collm.studies.gradients": Rule(rooms("metrics", "runtime.files"), only=TORCH),
    "collm.studies.launch": Rule(rooms("errors", "runtime.files")),
    "collm.studies.runs": Rule(rooms("errors", "metrics")),
    "collm.studies.plots": Rule(rooms("errors", "runtime.files") | studies("runs")),
    "collm.studies.statistics": Rule(rooms("errors"), only=frozenset({"numpy", "scipy"})),
    "collm.studies.claims": Rule(rooms("errors", "runtime.checks") | studies("statistics"), only=frozenset({"numpy"})),
    "collm.studies.outcomes": Rule(rooms("errors") | studies("claims", "runs", "statistics")),
    "collm.studies.gradient_page": Rule(rooms("runtime.files") | studies("gradients", "plots", "tables")),
    "collm.studies.gradient_test": Rule(
        rooms("cli", "runtime", "errors") | studies("gradient_page", "gradients", "launch", "plots", "tables"), cli=True
    ),
    "collm.studies.comparison": Rule(
        rooms("cli", "runtime", "errors", "metrics", "replay") | studies("launch", "plots", "runs", "tables"), cli=True
    ),
    "collm.studies.report": Rule(
        rooms("runtime", "errors")
        | studies("claims", "gradient_page", "launch", "outcomes", "plots", "statistics", "tables")
    ),
    "collm.studies.study": Rule(rooms("runtime", "errors") | studies("claims", "comparison", "launch", "outcomes")),
}


def is_under(name: str, parents: frozenset[str]) -> bool:
    """Whether the dotted `name` is one of `parents` or lies under one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def rule_of(module: str) -> Rule:
    """The rule of the room that `module` is or lies in."""
    if module == "collm":
        # Every import of a room runs it first, so that what it imports would be imported by all.
        return Rule(rooms(), only=frozenset())
    return next((rule for name, rule in RULES.items() if is_under(module, frozenset({name}))), Rule())


def imported_names(module: str, source: str, is_package: bool = False) -> list[str]:
    """Dotted names that `source` imports, wherever the import stands: also in functions and for type checkers.

    `from a import b` is `a.b`, whether b is a module or something in a; a rule about `a` covers both.
    """
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # One dot is the package that the module is in; a package's __init__ is in itself.
                parents = module.split(".")
                above = node.level - 1 if is_package else node.level
                base = ".".join(parents[: len(parents) - above] + ([base] if base else []))
            names.extend(f"{base}.{alias.name}" for alias in node.names)
    return names


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """The imports in `source`, the text of `module`, that its rule does not allow."""
    rule, found = rule_of(module), []
    for name in imported_names(module, source, is_package):
        top = name.split(".")[0]
        if top == "collm":
            reachable = rule.cli or not is_under(name, rooms("cli"))
            allowed = reachable and (rule.rooms is None or is_under(name, rule.rooms))
        elif top in sys.stdlib_module_names:
            allowed = True
        else:
            allowed = (rule.only is None or top in rule.only) and top not in rule.never
        if not allowed:
            found.append(f"{module} imports {name}")
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_there_is_something_to_check() -> None:
    assert {"collm", "collm.returns", "collm.environments.base"} <= {module_name(path) for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    assert violations(module_name(path), path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_fit_in_one_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_no_files_import_each_other_in_a_circle() -> None:
    """Counting imports inside functions too, of modules and of packages."""
    imported = {module_name(path): imports_of(path) for path in SOURCES}
    assert circle(imported) == []


def test_no_rooms_import_each_other_in_a_circle() -> None:
    """A room is a folder or a file at the top of the package."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    imported: dict[str, set[str]] = {}
    for path in SOURCES:
        own = room(module_name(path))
        imported.setdefault(own, set()).update({room(name) for name in imports_of(path)} - {own})
    assert circle(imported) == []


MODULES = {module_name(path) for path in SOURCES}


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports; `from a import b` is `a.b` if that is a module, else `a`."""
    names = imported_names(module_name(path), path.read_text(encoding="utf-8"), path.name == "__init__.py")
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES


def circle(imported: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, one after the other; empty if there are none."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


# The checker itself


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("collm.returns", "import numpy as np"),
        ("collm.returns", "from collm.trajectory import collate"),
        ("collm.errors", "import torch"),
        ("collm.trajectory", "from collm.packing import TokenSequence"),
        ("collm.environments.words", "import torch.nn.functional as F"),
        ("collm.environments.words", "from transformers import AutoTokenizer"),
        ("collm.environments.words", "from collm.samplers.base import Sampler"),
        ("collm.environments.words", "import collm.models"),
        ("collm.environments.words", "from ..models.policy import Policy"),
        ("collm.environments.words", "from .. import models"),
        ("collm.environments.words", "def play():\n    import torch"),
        ("collm.environments.words", "if TYPE_CHECKING:\n    from peft import PeftModel"),
        ("collm.models.policy", "import lightning.pytorch as pl"),
        ("collm.models.policy", "from collm import environments"),
        ("collm.models.policy", "from collm.inference.base import Engine"),
        ("collm.inference.vllm_engine", "from collm.inference.embedded.generation import generate"),
        ("collm.kernels.layers", "from collm.models.backbone import Backbone"),
        ("collm.algorithms.mine", "from collm.inference.actors import Actors"),
        ("collm.samplers.base", "from transformers import AutoTokenizer"),
        ("collm.samplers.base", "from collm.environments.words import Words"),
        ("collm.samplers.base", "from collm.environments import words"),
        ("collm.samplers.base", "from collm.models.policy import Policy"),
        ("collm.data", "from collm.algorithms.base import Algorithm"),
        ("collm.algorithms.mine", "from collm.algorithms.yours import Yours"),
        ("collm.algorithms.mine", "from .yours import Yours"),
        ("collm.algorithms.mine", "from collm.data import RolloutDataModule"),
        ("collm.callbacks.mine", "from collm.algorithms.base import Algorithm"),
        # A name that only begins like an allowed one.
        ("collm.algorithms.mine", "from collm.algorithms.baseline import Baseline"),
        ("collm.data", "from collm.cli import main"),
        ("collm.metrics", "from collm.cli import main"),
        ("collm", "from collm import cli"),
        ("collm", "import torch"),
        ("collm.sandbox", "from collm.trajectory import Task"),
    ],
)
def test_a_violation_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("collm.returns", "from __future__ import annotations\nimport math\nimport torch\nfrom torch import Tensor"),
        ("collm.environments.words", "from collm.environments.base import Environment\nimport numpy, random"),
        ("collm.environments.words", "from .base import Environment\nfrom ..trajectory import Task"),
        ("collm.samplers.base", "import torch\nfrom collm import trajectory"),
        ("collm.algorithms.mine", "from collm.algorithms.base import Algorithm\nimport lightning"),
        ("collm.cli", "from collm.algorithms.base import Algorithm\nfrom collm.data import RolloutDataModule"),
        ("collm.metrics", "import torchmetrics\nfrom collm.trajectory import Trajectory"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_relative_imports_of_a_package_start_at_itself() -> None:
    assert imported_names("collm.environments", "from .base import Environment", is_package=True) == [
        "collm.environments.base.Environment"
    ]
    assert imported_names("collm.environments.words", "from .base import Environment") == [
        "collm.environments.base.Environment"
    ]
