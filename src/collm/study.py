"""Many runs that belong together: methods by seeds, side by side, resumed where they stopped, compared at the end."""

from __future__ import annotations

import inspect
import re
import signal
import sys
from pathlib import Path

from jsonargparse import auto_cli

from collm.comparison import Entry, compare
from collm.errors import ConfigurationError, TrainingError
from collm.launch import Method, Run, refuse_other_settings, stacked, train, write

_OF_COMPARE = set(inspect.signature(compare).parameters) - {"entries", "out", "default_config"}


def study(
    configs: list[str],
    methods: dict[str, Method],
    out: str,
    seeds: tuple[int, ...] = (0, 1, 2),
    untrained: dict[str, Method] | None = None,
    overrides: dict | None = None,
    jobs: int = 1,
    comparison: dict | None = None,
    script: str = "tools/fit.py",
    default_config: str | None = None,
) -> None:
    """Train every method with every seed, then compare them with each other and with untrained protocols.

    What is finished is skipped and what was interrupted goes on from its last checkpoint, so that the same command can
    be given again at any time. The runs lie in <out>/<method>/seed_<seed>, the comparison in <out>/comparison.

    Args:
        configs: Configurations that all methods share.
        methods: What is trained, by label.
        out: Folder of the study.
        seeds: Seeds of every method.
        untrained: What is compared besides, with the weights as they are before training; by label.
        overrides: Settings of all methods on top of `configs`, nested as in a configuration file.
        jobs: Runs side by side; they share the processor's cores.
        comparison: Arguments of the comparison, such as `episodes_per_task`.
        script: The training command.
        default_config: Configuration that is read before all others.
    """
    untrained, comparison = untrained or {}, comparison or {}
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}; it must be at least 1.")
    if not methods or not seeds:
        raise ConfigurationError("a study needs at least one method and one seed.")
    if unknown := sorted(set(comparison) - _OF_COMPARE):
        raise ConfigurationError(
            f"comparison has no setting {unknown[0]!r}; there are {', '.join(sorted(_OF_COMPARE))}."
        )
    homes = {label: re.sub(r"\W+", "_", label).strip("_") for label in methods}
    if len(set(homes.values())) < len(homes) or not all(homes.values()):
        raise ConfigurationError(f"the labels {', '.join(methods)} must differ in their letters and digits.")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    shared = [*configs, write(folder / "overrides.yaml", overrides)] if overrides else list(configs)
    runs, entries = [], []
    for label, method in methods.items():
        home = folder / homes[label]
        stack = stacked(label, shared, method, home / "overrides.yaml")
        for seed in seeds:
            runs.append(Run(label, seed, home / f"seed_{seed}", stack))
            entries.append(Entry(label, str(runs[-1].folder / "config.yaml"), "last"))
    for label, method in untrained.items():
        stack = stacked(label, shared, Method(method.configs), None)
        entries.append(Entry(label, stack, None, method.overrides))
    refuse_other_settings(runs)
    train(runs, jobs, script)
    compare(entries, str(folder / "comparison"), default_config=default_config, **comparison)


def main(script: str | Path, default_config: str | Path) -> int:
    """Read the command line and do the study; the exit status is 0, 1 if runs failed, 2 for mistaken settings."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # however it is stopped, no run is left behind
    try:
        defaults = {"script": str(script), "default_config": str(default_config)}
        auto_cli(study, as_positional=False, set_defaults=defaults)
    except (ConfigurationError, TrainingError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
