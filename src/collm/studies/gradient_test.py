"""The gradient test: noise and bias of every method's policy gradient at fixed policies.

A learning curve mixes the quality of a gradient estimate with everything that follows from its updates. This test
isolates the estimate: how many episodes does an update need before its gradient points in the right direction? It
trains policies, measures a reference gradient on many episodes, then runs every method at these policies and records
its gradients without applying them (`collm.studies.record_gradients`). All of these are ordinary training runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from collm import cli  # noqa: F401 (imported once, before runs are forked)
from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, COUNT_OR_ZERO, check_number
from collm.runtime.command import run_command
from collm.studies.gradient_page import write_page
from collm.studies.gradients import load, statistics
from collm.studies.launch import Method, Run, homes_of, nested, refuse_other_settings, stacked, train, write
from collm.studies.plots import pyplot
from collm.studies.tables import Row, as_text

FILE = "gradients.pt"
FIRST_SEED = 2**33  # larger than the seed of any run


def gradient_test(
    configs: list[str],
    methods: dict[str, Method],
    out: str,
    reference: Method | None = None,
    policies: dict[str, Method] | None = None,
    cells: dict[str, Method] | None = None,
    seeds: tuple[int, ...] = (0,),
    seeded: list[str] | None = None,
    fit_rollouts: int = 32,
    measured_rollouts: int = 32,
    reference_rollouts: int = 128,
    jobs: int = 1,
    figures: bool = True,
    note: str = "",
    script: str = "tools/fit.py",
    default_config: str | None = None,
) -> None:
    """Measure noise and bias of policy gradients at fixed policies.

    Finished runs are skipped, so the command can be repeated at any time. The folder `out` will contain a report
    (README.md), figures, and the underlying numbers.

    Args:
        configs: Configurations that all runs share.
        methods: Methods to measure, by label. They train their critics, if any, on `fit_rollouts` rollouts; then
            gradients are measured on the next `measured_rollouts` rollouts.
        out: Folder to write to.
        reference: A method with an unbiased gradient, with which all others are compared: an oracle critic with
            gae_lambda 1, or MARLOO. Without it only the noise is measured.
        policies: Training runs whose final policies are used, by label; by default the initial weights.
        cells: Settings of the environment in which the methods are measured, by label; by default those of `configs`.
        seeds: Seeds with which every policy is trained and every method measured.
        seeded: Settings that take the seed as their value, such as `data.environment.init_args.mapping`.
        fit_rollouts: Rollouts on which critics are trained at each policy.
        measured_rollouts: Rollouts on which gradients are measured after that.
        reference_rollouts: Rollouts of the reference; intervals do not include its error, so use many.
        jobs: Number of parallel runs; they share the CPU cores.
        figures: Draw figures, which needs matplotlib.
        note: A remark for the top of the report.
        script: The training command.
        default_config: Configuration that is read before all others.
    """
    check_number("fit_rollouts", fit_rollouts, COUNT_OR_ZERO)
    check_number("measured_rollouts", measured_rollouts, COUNT)
    check_number("reference_rollouts", reference_rollouts, COUNT)
    check_number("jobs", jobs, COUNT)
    if not methods or not seeds:
        raise ConfigurationError("a gradient test needs at least one method and one seed.")
    if figures:
        pyplot()
    folder, policies, cells = Path(out), policies or {"initial": Method()}, cells or {"all": Method()}
    cell_homes, policy_homes = homes_of(cells), homes_of(policies)
    taken = {"reference": reference is not None, "policy": any(policy != Method() for policy in policies.values())}
    method_homes = homes_of([*methods, *(name for name, needed in taken.items() if needed)])

    def run(cell: str, subfolder: str, label: str, method: Method, seed: int, settings: Mapping[str, Any]) -> Run:
        home = folder / cell_homes[cell] / subfolder
        stack = stacked(cell, list(configs), cells[cell], folder / cell_homes[cell] / "overrides.yaml")
        stack = stacked(label, stack, method, home / "overrides.yaml")
        own = [write(home / f"seeded_{seed}_{n}.yaml", nested(name, seed)) for n, name in enumerate(seeded or [])]
        own.append(write(home / f"settings_{seed}.yaml", dict(settings)))
        return Run(f"{cell}, {label}", seed, home / f"seed_{seed}", [*stack, *own])

    quick: dict[str, Any] = {"limit_val_batches": 0, "enable_checkpointing": True}
    checkpoint = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"filename": "last"}}
    trained, references, measured = {}, {}, {}
    for seed, cell, policy in product(seeds, cells, policies):  # an interrupted test has complete seeds
        key, at, source = (cell, policy, seed), policy_homes[policy], None
        if policies[policy] != Method():
            callbacks = [*policies[policy].overrides.get("trainer", {}).get("callbacks", []), checkpoint]
            settings = {"trainer": {**quick, "callbacks": callbacks}}
            trained[key] = run(cell, f"{at}/policy", policy, policies[policy], seed, settings)
            source = str(trained[key].folder / "checkpoints" / "last.ckpt")
        truth = None
        if reference is not None:
            settings = measuring(
                folder / cell_homes[cell] / at / "reference", seed, source, 0, reference_rollouts, None
            )
            references[key] = run(cell, f"{at}/reference", f"reference at {policy}", reference, seed, settings)
            truth = str(references[key].folder / FILE)
        for label, method in methods.items():
            home = f"{at}/{method_homes[label]}"
            settings = measuring(folder / cell_homes[cell] / home, seed, source, fit_rollouts, measured_rollouts, truth)
            measured[(*key, label)] = run(cell, home, f"{label} at {policy}", method, seed, settings)
    everything = [*trained.values(), *references.values(), *measured.values()]
    refuse_other_settings(everything)
    for stage in (trained, references, measured):
        train(list(stage.values()), jobs, script)

    tables: dict[str, list[Row]] = {}
    for cell, policy, label in product(cells, policies, methods):
        files = [load(measured[cell, policy, seed, label].folder / FILE) for seed in seeds]
        truths = [load(references[cell, policy, seed].folder / FILE) for seed in seeds] if reference else []
        title = cell if len(policies) == 1 else f"{cell}, {policy}"
        tables.setdefault(title, []).append(Row(label, len(seeds), statistics(files, truths)))
    for title, rows in tables.items():
        print(f"\n{title}\n{as_text(rows)}")
    write_page(folder, tables, figures, note)
    print(f"written to {folder}")


def measuring(
    home: Path, seed: int, source: str | None, fit_rollouts: int, measured_rollouts: int, reference: str | None
) -> dict[str, Any]:
    """Settings of a run that measures instead of training."""
    arguments = {
        "path": str(home / f"seed_{seed}" / FILE),
        "policies": source,
        "fit_rollouts": fit_rollouts,
        "measured_rollouts": measured_rollouts,
        "reference": reference,
        # rollouts independent of those the policy was trained on, and of those of the reference
        "data_seed": FIRST_SEED + 2 * seed + (home.name == "reference"),
    }
    callback = {"class_path": "collm.studies.record_gradients.MeasureGradients", "init_args": arguments}
    return {
        "data": {"rollouts_per_epoch": fit_rollouts + measured_rollouts},
        "trainer": {
            "max_epochs": 1,
            "limit_val_batches": 0,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "callbacks": [callback],
        },
    }


def main(script: str | Path, default_config: str | Path) -> int:
    """The command; `script` is the training command."""
    return run_command(gradient_test, script=str(script), default_config=str(default_config))
