"""Links in `docs/` lead somewhere, its commands and configurations exist, its code runs, and the site builds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from collm import cli, commands
from toy import toy_config

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*DOCS.glob("*.md"), DOCS / "llms.txt"])
WITH_FIT = ("fit", "validate", "test", "predict")


def blocks(path: Path, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_llms_txt_names_every_page():
    text = (DOCS / "llms.txt").read_text()
    listed = set(re.findall(r"\]\((\w+\.md)\)", text))
    assert {path.name for path in DOCS.glob("*.md")} - listed <= {"index.md", "reference.md"}


def test_the_navigation_names_pages_that_exist_and_all_of_them():
    entries = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    named: list[str] = []

    def collect(entry) -> None:
        if isinstance(entry, str):
            named.append(entry)
        elif isinstance(entry, dict):
            collect([*entry.values()])
        else:
            for one in entry:
                collect(one)

    collect(entries)
    assert {path.name for path in DOCS.glob("*.md")} <= set(named)
    assert [name for name in named if not (DOCS / name).is_file()] == []
    titles = [title for entry in entries if isinstance(entry, dict) for title in entry]
    assert [title[:2] for title in titles[:13]] == [f"{number:02}" for number in range(13)]


def calls() -> list[list[str]]:
    """Every call of collm or of a tool in the blocks of the documentation, as words."""
    lines = "\n".join(block for path in PAGES for block in blocks(path, "bash")).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["collm"]:
            found.append(words[1:])
        elif words[:1] == ["python"] and words[1].startswith("tools/"):
            found.append([Path(words[1]).stem, *words[2:]] if words[1] != "tools/fit.py" else words[2:])
    return found


@pytest.mark.parametrize("call", calls(), ids=" ".join)
def test_commands_and_configurations_of_the_documentation_exist(call):
    name, *arguments = call
    assert name == "--help" or name in commands.COMMANDS
    named = [word.partition("=")[2] or word for word in arguments if re.search(r"configs/.*\.yaml$", word)]
    assert [path for path in named if not (REPOSITORY / path).is_file()] == []


def test_the_algorithms_the_critic_and_the_sampler_of_the_documentation_train(tmp_path, monkeypatch, tiny_folder):
    (tmp_path / "mine.py").write_text("\n\n".join(blocks(DOCS / "algorithms.md", "python")))
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy_config(tiny_folder)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    base = REPOSITORY / "configs" / "base.yaml"
    short = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
    common = ["fit", "--config=toy.yaml", *short]
    assert cli.main(base, [*common, "--model=mine.Mine", "--model.critic=mine.MeanByTurn"]) == 0
    toy = yaml.safe_load((tmp_path / "toy.yaml").read_text())
    del toy["model"]["init_args"]["critic"]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy))
    assert cli.main(base, [*common, "--model=mine.TeamReinforce", "--data.sampler=mine.InTurn"]) == 0
    sys.modules.pop("mine", None)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs-material is missing")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is missing")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "update_policies" in (tmp_path / "site" / "reference" / "index.html").read_text()
