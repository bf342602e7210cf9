"""Every command of README, CONTRIBUTING and docs/ is run by a test, or stands here with the reason why not."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from collm import cli
from collm.commands import main as collm_main

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NOT_HERE = "not run: "

# The first pattern that a command matches says which test runs it, as it stands or with fewer and smaller episodes.
COMMANDS = {
    # it takes weights from the hub, a package of hundreds of megabytes, or hours: tests take the tiny model instead
    r"fit --config configs/paper/|fit .*tldr_smollm2\.yaml( +#|$)|bfcl_smollm2": "tests/test_documented_commands.py"
    "::test_what_takes_large_weights_or_hours_runs_with_the_tiny_model_and_samples",
    r"plan --config configs/paper/tldr": "tests/benchmark/test_plan.py::test_the_table_is_printed",
    r"bfcl_untrained": NOT_HERE + "most of an hour; tests/studies/test_comparison.py compares smaller entries",
    r"study(\.py)? --config": "tests/studies/test_study_claims.py::test_shipped_studies",
    r"bench\.py table": NOT_HERE + "other libraries in environments of their own, an hour",
    r"bench\.py scaling": "tests/benchmark/test_scaling.py::test_two_processes_are_compared_with_one",
    r"vllm": NOT_HERE + "vLLM; its tests run where it is installed",
    # it takes a cluster, several devices, servers elsewhere or a person
    r"srun|SBATCH|scontrol|torchrun|#!/bin/bash|SLURM|RESUME|^\[ ": NOT_HERE + "a cluster",
    r"fsdp\.yaml": NOT_HERE + "eight GPUs; tests/test_devices.py trains with FSDP2 on two processes",
    r"placed\.yaml|--trainer\.strategy\.devices": NOT_HERE + "several GPUs; tests/test_placed.py uses a processor",
    r"--host 0\.0\.0\.0|--endpoints endpoints\.yaml|TEAM_KEY": "tests/serving/test_documented_teams.py"
    "::test_one_agent_elsewhere_behind_a_key",
    r"quantization nf4|AdamW8bit": NOT_HERE + "bitsandbytes; tests/models/test_quantized.py and test_low_bit.py use it",
    r"WandbLogger": NOT_HERE + "a package and an account",
    # it installs or fetches
    r"pip install|git clone|^cd |pre-commit|python3 -m venv|\.venv/bin/activate": NOT_HERE + "it installs something",
    r"pytest|ruff|mypy|\.ci/run": NOT_HERE + "it runs the tests, or CI does before them",
    # it runs
    r"fit --config configs/experiments/str_build_tiny\.yaml$|fit\.py (fit|validate) --config logs/"
    r"|^collm (fit|validate) .*(str_build_tiny|logs/collm/version_0)(?!.*mine\.)": "tests/test_documented_commands.py"
    "::test_the_commands_of_the_first_run_work_one_after_the_other",
    r"mine\.": "tests/test_docs.py::test_the_algorithms_the_critic_and_the_sampler_of_the_documentation_train",
    r"mypackage\.echo": "tests/test_readme.py::test_the_command_of_the_environment_trains_as_it_stands",
    r"--config questions\.yaml": "tests/environments/test_reward_function_page.py",
    r"play\.py .*(human|http:)": "tests/serving/test_play.py::test_a_person_a_script_and_an_endpoint_play_together",
    r"(serve|play)\.py|fit\.py predict": "tests/serving/test_documented_teams.py"
    "::test_a_run_is_served_played_and_evaluated",
    r"plan(\.py)? --config": "tests/benchmark/test_plan.py::test_the_page_has_the_table_of_its_command",
    r"bench\.py run": "tests/benchmark/test_suite.py::test_any_configuration_is_compared_with_the_floor",
    r"report(\.py)? --study": "tests/studies/test_study_claims.py::test_report_of_a_small_study",
    r"collm replay logs/comparison": "tests/replay/test_page.py"
    "::test_inputs_can_be_named_and_comparisons_name_their_methods",
    r"collm replay": "tests/test_documented_commands.py::test_the_commands_of_the_first_run_work_one_after_the_other",
    r"bench\.py gpu": "tests/benchmark/test_gpu.py",
    r"--help": "tests/test_commands.py",
}


def commands(path: Path) -> list[str]:
    """The commands of a page's blocks; a line that ends in a backslash goes on, and `&&` begins another command."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [one for line in lines if line.strip() and not line.startswith("# ") for one in parts(line)]


def parts(line: str) -> list[str]:
    command, sign, comment = line.partition(" #")
    first, *others = command.split(" && ")
    return [first, *others[:-1], others[-1] + sign + comment] if others else [line]


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
    for line in commands(REPOSITORY / "docs" / "replay.md"):
        if "logs/comparison" not in line:
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            assert collm_main() == 0
    assert Path("replay.html").read_text() != Path("both.html").read_text()
    config = yaml.safe_load((run / f"version_{len(lines) - 1}" / "config.yaml").read_text())
    stopping = config["trainer"]["callbacks"][-1]
    assert stopping["class_path"].endswith("EarlyStopping")
    assert (stopping["init_args"]["monitor"], stopping["init_args"]["patience"]) == ("eval/return", 3)


LARGE = sorted(  # once each, whether it begins with `collm` or `python tools/fit.py`
    {re.split(r" #|collm |fit\.py ", line)[1].strip() for _, line in ALL if re.search(next(iter(COMMANDS)), line)}
)


@pytest.mark.slow
@pytest.mark.parametrize("line", LARGE)
def test_what_takes_large_weights_or_hours_runs_with_the_tiny_model_and_samples(line, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    words = [str(REPOSITORY / word) if word.startswith("configs/") else word for word in words]
    given = ["--model.policy.path=tiny", "--data.environment.dataset=samples", "--data.environment.num_eval=1"]
    if "paper/" in line:
        given.append("--data.environment.num_train=2")  # of 1,000
    if "magrpo" not in line and "bfcl" not in line:  # these have no language model as critic
        given.append("--model.critic.model.path=tiny")
    limits = ["--data.eval_episodes_per_task=1", "--model.policy.max_new_tokens=4", "--trainer.accelerator=cpu"]
    if words[0] == "fit":
        limits += ["--data.rollouts_per_epoch=1", "--trainer.max_epochs=1"]
    assert cli.main(REPOSITORY / "configs" / "base.yaml", [*words, *given, *limits]) == 0


def test_without_the_hub_a_command_that_needs_it_ends_with_one_message(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = REPOSITORY / "configs" / "paper" / "tldr.yaml"
    assert cli.main(REPOSITORY / "configs" / "base.yaml", ["fit", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 1
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())
