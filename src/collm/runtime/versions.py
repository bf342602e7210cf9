"""Check of the installed dependencies, with one clear message before any of them is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from collm.errors import ConfigurationError


def check_versions(requirements: list[str] | None = None) -> None:
    """Refuse versions of dependencies outside the ranges of pyproject.toml.

    Args:
        requirements: Requirements in pip's format; by default those of this package, without extras.

    Raises:
        ConfigurationError: Names the installed versions and the pip command that corrects them.
    """
    if requirements is None:
        try:
            requirements = requires("collm") or []
        except PackageNotFoundError:  # run from a source folder that is not installed
            return
    wanted, present = [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = None
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wanted.append(f"'{requirement.name}{requirement.specifier}'")
            present.append(f"{requirement.name} {installed}" if installed else f"no {requirement.name}")
    if wanted:
        raise ConfigurationError(
            f"{', '.join(present)} is installed, which does not work: pip install {' '.join(wanted)}"
        )
