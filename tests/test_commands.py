"""The command `collm`: every command and every file of `tools/` works, help is quick because nothing is imported."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from collm import commands
from collm.runtime.quick_help import classes_of, function_help, training_help

REPOSITORY = Path(__file__).parents[1]
HEAVY = ("torch", "lightning", "transformers", "numpy", "yaml", "jsonargparse")
PROBE = """
import sys
from collm.commands import main
sys.argv = ["collm", *sys.argv[1:]]
try:
    status = main()
except SystemExit as end:
    status = end.code
print("imported:", *[name for name in sys.modules if name in {heavy}])
sys.exit(status)
"""


def collm(*args: str, folder: Path = REPOSITORY) -> tuple[int, str]:
    """Exit status and output of the command, and the heavy packages that it imported in the last line."""
    code = PROBE.replace("{heavy}", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=folder, timeout=300, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_help_lists_every_command_with_a_sentence():
    status, text = collm("--help")
    assert status == 0
    listed = [line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  ")]
    assert [name for name, _ in listed] == list(commands.COMMANDS)
    assert all(len(words) > 20 for _, words in listed)
    assert text.endswith("imported:\n")


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_imports_nothing_heavy(name):
    status, text = collm(name, "--help")
    assert status == 0
    assert text.rstrip().endswith("imported:")
    assert "--" in text


def test_every_tool_is_a_command_and_calls_it():
    tools = {path.stem for path in (REPOSITORY / "tools").glob("*.py")}
    assert tools - set(commands.COMMANDS) <= {"gathering"}  # writes results of this repository
    assert {"fit", "compare", "study", "gradient", "report", "score", "plan", "bench", "ceiling", "replay"} <= tools


def test_a_mistyped_command_names_the_nearest():
    status, text = collm("comparr")
    assert status == 2
    assert "did you mean 'compare'?" in text


def test_the_short_help_of_fit_shows_classes_and_files_that_exist():
    text = training_help("fit")
    for name in ("CoLLMCC", "MAGRPO", "StrBuild", "TLDR", "Tree", "str_build_tiny", "collm_dc"):
        assert name in text
    for name in ("ActorCritic", "MonteCarlo", "BuildingGame", "Conversation", "_"):
        assert f"\n  {name} " not in text
    assert len(list(classes_of(REPOSITORY / "src" / "collm" / "environments"))) >= 8


def test_the_short_help_of_a_function_has_all_its_arguments():
    text = function_help("collm.studies.comparison", "compare")
    assert "--episodes_per_task int (default: 16)\n      Episodes of each held-out task." in text
    assert "Evaluate entries on the same held-out tasks" in text


def test_the_short_help_shows_what_is_positional():
    text = function_help("collm.serving.command", "serve", positional=True)
    assert "\n  RUN str\n      Folder of a finished run, such as logs/collm/version_0.\n" in text
    assert "\n  --port int (default: 0)\n" in text


@pytest.mark.parametrize("name", ["run", "table", "gpu"])
def test_the_help_of_a_benchmark_imports_nothing_heavy(name):
    status, text = collm("bench", name, "--help")
    assert status == 0
    assert text.rstrip().endswith("imported:")


def test_configurations_of_the_package_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["x", "--config", "configs/models/tiny.yaml", "--config=configs/models/tiny.yaml", "configs/none.yaml"]
    monkeypatch.setattr(sys, "argv", list(given))
    commands.prepare()
    found = str(commands.CONFIGS / "models" / "tiny.yaml")
    assert sys.argv == ["x", "--config", found, f"--config={found}", "configs/none.yaml"]
    (tmp_path / "configs" / "models").mkdir(parents=True)
    (tmp_path / "configs" / "models" / "tiny.yaml").write_text("{}")
    monkeypatch.setattr(sys, "argv", list(given))
    commands.prepare()
    assert sys.argv == given  # one's own file comes first


def test_the_current_folder_can_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    commands.prepare()
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.slow
def test_a_wheel_holds_the_configurations_and_the_page(tmp_path):
    build = pytest.importorskip("setuptools.build_meta")
    del build
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (
        "configs/base.yaml",
        "configs/experiments/str_build_tiny.yaml",
        "replay/page/main.js",
        "assets/tiny/config.json",
    ):
        assert f"collm/{path}" in names
    (points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "collm = collm.commands:main" in zipfile.ZipFile(wheel).read(points).decode()


BROKEN = {
    "a typo": (
        "from collm.environments.base import Environmant\n",
        ["data.environment: ImportError: ", "Environmant", "mine.py line 1"],
    ),
    "a name": ("x = 1\ny = zz\n", ["NameError: name 'zz' is not defined", "mine.py line 2", "y = zz"]),
    "no Python": ("def f(:\n", ["SyntaxError", "mine.py line 1: def f(:"]),
    "a package": ("import never_heard_of\n", ["no module named 'never_heard_of'"]),
}


@pytest.mark.parametrize(("text", "fragments"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_in_a_file_of_ones_own_is_named_first_with_its_line(
    fit, capsys, tmp_path, monkeypatch, text, fragments
):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert fit("--data.environment=mine.Mine") in (1, 2)
    message = capsys.readouterr().err.partition("error: ")[2]
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert "is not a class that fits here" not in message
    sys.modules.pop("mine", None)
