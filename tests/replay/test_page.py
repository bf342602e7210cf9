"""What stands in a replay page, and what is refused, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hostile import ATTACKS, episode

from collm.errors import ConfigurationError
from collm.replay.episodes import MAX_LINE, MAX_TEXT
from collm.replay.page import MAX_BYTES, document_of, html_of, write_page
from collm.replay.sources import find_sources


def transcript(path: Path, *episodes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in episodes))
    return path


def run_folder(path: Path, reward: float = 1.0) -> Path:
    for step, gain in ((0, 0.0), (512, 0.5), (1024, 1.0)):
        episodes = [episode(task, reward + gain) for task in ("a", "b") for _ in range(2)]
        transcript(path / "transcripts" / f"validate-{step:08d}.jsonl", *episodes)
    return path


def data_of(page: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="document">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


def test_a_run_is_shown_with_all_its_evaluations_in_order(tmp_path):
    run_folder(tmp_path / "run")
    assert write_page([tmp_path / "run"], tmp_path / "page.html") == 12
    data = data_of((tmp_path / "page.html").read_text())
    assert [one["step"] for one in data["sources"]] == [0, 512, 1024]
    assert [(one["source"], one["number"]) for one in data["episodes"]][:5] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1)]
    assert data["left_out"] == 0


def test_inputs_can_be_named_and_comparisons_name_their_methods(tmp_path):
    run = run_folder(tmp_path / "run")
    for name in ("CoLLM_CC_0", "MAGRPO_0"):
        transcript(
            tmp_path / "comparison" / "evaluations" / name / "transcripts" / "validate-00000008.jsonl", episode("a", 1)
        )
    assert {one.label for one in find_sources([f"before={run}"])} == {"before"}
    assert [one.label for one in find_sources([tmp_path / "comparison"])] == ["CoLLM CC", "MAGRPO"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_model_wrote_stays_text(attack):
    document = {"title": attack, "left_out": 0, "sources": [], "episodes": []}
    page = html_of(document | {"episodes": [attack.encode("utf-8", "replace").decode()], "title": attack[:9]})
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert data_of(page)["episodes"] == [attack.encode("utf-8", "replace").decode()]


def test_the_script_makes_no_markup_from_text():
    folder = Path(__file__).parents[2] / "src" / "collm" / "replay" / "page"
    code = "".join(path.read_text() for path in folder.glob("*.js"))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttpRequest|\bimport\b", code
    )


def test_a_page_too_large_keeps_the_first_episodes_of_each_task_before_and_after(tmp_path):
    run = run_folder(tmp_path / "run")
    sources = find_sources([run])
    everything = document_of(sources)
    empty = {**everything, "episodes": []}
    size = (len(html_of(everything)) - len(html_of(empty))) / 12  # bytes of an episode
    data = document_of(sources, max_bytes=int(4.5 * size))
    kept = [(one["source"], one["task"], one["number"]) for one in data["episodes"]]
    assert kept == [(0, "a", 1), (0, "b", 3), (2, "a", 1), (2, "b", 3)]
    assert data["left_out"] == 8


def test_a_page_is_never_larger_than_promised(tmp_path):
    episodes = [episode(f"task {index}", 1.0, "<&" * 4000) for index in range(200)]
    write_page([transcript(tmp_path / "large.jsonl", *episodes)], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size <= MAX_BYTES


def test_episodes_beyond_the_most_of_a_file_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("collm.replay.episodes.MAX_EPISODES", 3)
    files = [transcript(tmp_path / f"{name}.jsonl", *[episode("a", 1.0)] * 5) for name in ("one", "two")]
    files[1].write_text("\n" + files[1].read_text())  # an empty line is no episode
    data = document_of(find_sources(files))
    assert (len(data["episodes"]), data["left_out"]) == (6, 4)


def test_values_of_wrong_types_do_no_harm(tmp_path):
    strange = {
        "task_id": 3,
        "return": "high",
        "metrics": ["x"],
        "turns": [
            7,
            {
                "reward": float("nan"),
                "terms": {"a": True, "b": None, "c": 1e999},
                "info": {"rejected": {"x": [["one"], 5, ["l", 3]]}},
                "tokens": {"x": [[1]]},
                "actions": {"x": ["list"]},
                "messages": [4],
                "branch": 3,
            },
        ],
    }
    path = tmp_path / "strange.jsonl"
    path.write_text(json.dumps(strange) + "\n" + json.dumps(episode("x" * 50_000, 1.0, "y" * 50_000)) + "\n")
    first, second = document_of(find_sources([path]))["episodes"]
    assert (first["task"], first["return"], first["metrics"]) == ("3", None, {})
    (turn,) = first["turns"]
    assert (turn["reward"], turn["terms"]["c"], turn["rejected"]) == (None, None, {"x": [["l", "3"]]})
    assert turn["actions"] == {"x": '["list"]'}
    assert len(second["task"]) < 300
    assert len(second["turns"][0]["actions"]["helper"]) < MAX_TEXT + 60


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json\n", "line 1 is no episode"),
        ('{"turns": 3}\n', "line 1 is no episode"),
        ("[" * 100_000, "no episode"),
        ("", "no episodes"),
    ],
)
def test_files_that_hold_no_episodes_are_refused(tmp_path, text, message):
    path = tmp_path / "file.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        document_of(find_sources([path]))


def test_a_line_too_long_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_bytes(b" " * (MAX_LINE + 10))
    with pytest.raises(ConfigurationError, match="longer than 8,000,000 bytes"):
        document_of(find_sources([path]))


def test_a_folder_without_transcripts_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="has no transcripts"):
        find_sources([tmp_path])
    with pytest.raises(ConfigurationError, match="does not exist"):
        find_sources([tmp_path / "nowhere"])
