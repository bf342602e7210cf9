"""Whether what is installed is what this package was tested with: said in one line before it is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from collm.errors import ConfigurationError


def check_versions(requirements: list[str] | None = None) -> None:
    """Refuse versions of dependencies outside the ranges of pyproject.toml.

    Args:
        requirements: What is needed, as pip writes it; by default what this package declares, without extras.

    Raises:
        ConfigurationError: Says what is installed and what to install instead.
    """
    if requirements is None:
        try:
            requirements = requires("collm") or []
        except PackageNotFoundError:  # run from a folder that was never installed
            return
    wrong, found = [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = None
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"'{requirement.name}{requirement.specifier}'")
            found.append(f"{requirement.name} {installed}" if installed else f"no {requirement.name}")
    if wrong:
        raise ConfigurationError(f"{', '.join(found)} is installed, which does not work: pip install {' '.join(wrong)}")
