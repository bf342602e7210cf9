"""Every command of README, CONTRIBUTING and docs/ is run by a test, or stands here with the reason why not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from collm import cli

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NOT_HERE = "not run: "

# The first pattern that a command matches says which test runs it, as it stands or with fewer and smaller episodes.
COMMANDS = {
    # it takes weights from the hub, a package of hundreds of megabytes, or hours
    r"configs/paper/tldr\.yaml .*# Qwen3|fit --config configs/paper/": NOT_HERE + "Qwen3-1.7B from the hub",
    r"plan --config configs/paper/tldr": "tests/benchmark/test_plan.py::test_the_table_is_printed",
    r"tools/fit\.py fit --config configs/experiments/tldr_smollm2\.yaml +#|collm fit .*tldr_smollm2\.yaml +#": NOT_HERE
    + "an hour; tests/test_configs.py::test_an_experiment_is_complete_and_its_prompts_fit composes it",
    r"bfcl_smollm2|bfcl_untrained": NOT_HERE
    + "most of an hour; tests/test_configs.py::test_an_experiment_is_complete_and_its_prompts_fit composes it",
    r"study(\.py)? --config": "tests/studies/test_study_claims.py::test_shipped_studies",
    r"bench\.py table": NOT_HERE + "other libraries in environments of their own, an hour",
    r"bench\.py scaling": NOT_HERE + "two processors of their own for some minutes",
    r"vllm": NOT_HERE + "vLLM; its tests run where it is installed",
    # it takes a cluster, several devices, servers elsewhere or a person
    r"srun|SBATCH|scontrol|torchrun|#!/bin/bash|SLURM|RESUME": NOT_HERE + "a cluster",
    r"fsdp\.yaml": NOT_HERE + "eight GPUs; tests/test_devices.py trains with FSDP2 on two processes",
    r"placed\.yaml|--trainer\.strategy\.devices": NOT_HERE + "several GPUs; tests/test_placed.py uses a processor",
    r"--host 0\.0\.0\.0|--endpoints endpoints\.yaml|TEAM_KEY": NOT_HERE + "two machines",
    r"WandbLogger": NOT_HERE + "a package and an account",
    # it installs or fetches
    r"pip install|git clone|pre-commit|python3 -m venv|\.venv/bin/activate": NOT_HERE + "it installs something",
    r"pytest|ruff check|\.ci/run": NOT_HERE + "it runs the tests",
    # it runs
    r"^collm (fit|validate) .*(str_build_tiny|logs/collm/version_0)(?!.*mine\.)": "tests/test_documented_commands.py"
    "::test_the_commands_of_the_first_run_work_one_after_the_other",
    r"mine\.": "tests/test_docs.py::test_the_algorithms_and_the_critic_of_the_documentation_train",
    r"mypackage\.echo": "tests/test_readme.py::test_the_three_additions_train",
    r"fit\.py (fit|validate) --config logs/": "tests/test_documented_commands.py"
    "::test_the_commands_of_the_first_run_work_one_after_the_other",
    r"--config questions\.yaml": "tests/environments/test_reward_function_page.py",
    r"play\.py .*(human|http:)": "tests/serving/test_play.py::test_a_person_a_script_and_an_endpoint_play_together",
    r"(serve|play)\.py|fit\.py predict": "tests/serving/test_processes.py"
    "::test_a_run_is_served_by_a_command_and_stops_with_it",
    r"plan(\.py)? --config": "tests/benchmark/test_plan.py::test_the_table_is_printed",
    r"bench\.py run": "tests/benchmark/test_suite.py::test_any_configuration_is_compared_with_the_floor",
    r"report(\.py)? --study": "tests/studies/test_study_claims.py::test_report_of_a_small_study",
    r"collm replay": "tests/replay/test_page.py::test_inputs_can_be_named_and_comparisons_name_their_methods",
    r"bench\.py gpu": "tests/benchmark/test_gpu.py",
    r"--help": "tests/test_commands.py",
}


def commands(path: Path) -> list[str]:
    """The commands of a page's blocks, a line each; a line that ends in a backslash goes on."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("# ")]


ALL = [(path.name, line) for path in PAGES for line in commands(path)]


@pytest.mark.parametrize(("page", "line"), ALL, ids=lambda text: text[:60])
def test_a_command_is_run_by_a_test_or_listed_with_the_reason_why_not(page: str, line: str) -> None:
    how = next((how for pattern, how in COMMANDS.items() if re.search(pattern, line)), None)
    assert how, f"{page}: no test runs {line!r}; add one, or the reason why not"


def test_the_list_names_tests_that_exist_and_nothing_that_no_page_says() -> None:
    used = {next((one for one in COMMANDS if re.search(one, line)), None) for _, line in ALL}
    assert set(COMMANDS) - used == set()
    for how in COMMANDS.values():
        for file, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", how):
            text = (REPOSITORY / file).read_text()
            assert not name or f"def {name}(" in text, f"{file} has no {name}"


SHORT = (
    *("--data.rollouts_per_epoch=1", "--data.tasks_per_rollout=1", "--data.eval_episodes_per_task=1"),
    "--model.policy.max_new_tokens=8",
)


@pytest.mark.slow
def test_the_commands_of_the_first_run_work_one_after_the_other(tmp_path, monkeypatch, capsys) -> None:
    """Those of docs/first_run.md, in their order, each with few and small epochs."""
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands(REPOSITORY / "docs" / "first_run.md") if "--help" not in line]
    lines = [line for line in lines if line.startswith("collm ") and "WandbLogger" not in line]
    assert len(lines) == 7
    for line in lines:
        name, *words = shlex.split(line.removeprefix("collm "), comments=True)
        words = [str(REPOSITORY / word) if word.startswith("configs/") else word for word in words]
        epochs = 2 if "--trainer.max_epochs" in words else 1
        limits = [f"--trainer.max_epochs={epochs}"] if name == "fit" else []
        assert cli.main(REPOSITORY / "configs" / "base.yaml", [name, *words, *SHORT, *limits]) == 0, line
    assert "exporting the best agents" in capsys.readouterr().out
    run = tmp_path / "logs" / "collm"
    assert (run / "version_0" / "replay.html").is_file()
    config = yaml.safe_load((run / f"version_{len(lines) - 1}" / "config.yaml").read_text())
    stopping = config["trainer"]["callbacks"][-1]
    assert stopping["class_path"].endswith("EarlyStopping")
    assert (stopping["init_args"]["monitor"], stopping["init_args"]["patience"]) == ("eval/return", 3)
