"""Teams with a mate missing, late or of another run, and the table that is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors import actors_of
from collm.samplers.stand_ins import StandIns, repeating, saying, scripted
from collm.serving.teams import play
from collm.studies import cross_play
from collm.studies.tables import Row
from served import team
from toy import Toy


def texts(trajectories: list, agent_id: str) -> list[list[str]]:
    return [[turn.actions[agent_id].text for turn in trajectory.turns] for trajectory in trajectories]


def test_stand_ins_write_for_one_agent_and_leave_the_other() -> None:
    game, policies = Toy(horizon=3, num_eval=2), team("tiny", max_new_tokens=4)
    for stand_in, expected in (
        (saying("7"), ["7", "7", "7"]),
        (saying("", after=2), [None, None, ""]),
        (repeating("a1"), [None, 0, 0]),
    ):
        actors = actors_of(policies)
        sampler = StandIns({"a1": stand_in})
        played = play(game, sampler, actors, game.tasks("eval"), 1, 0)
        for written in texts(played, "a1"):
            for turn, text in enumerate(expected):
                assert text is None or written[turn] == (written[0] if text == 0 else text)
        assert any(text for written in texts(played, "a2") for text in written)
        assert not any(
            action.absent for trajectory in played for turn in trajectory.turns for action in turn.actions.values()
        )


def test_a_script_is_the_environments_demonstration() -> None:
    class Shown(Toy):
        def demonstrate(self, state: object, rng: object) -> dict[str, str]:
            return {"a1": "one", "a2": "two"}

    game = Shown(num_eval=1)
    sampler = StandIns({"a1": scripted("a1"), "a2": scripted("a2")})
    (played,) = play(game, sampler, actors_of(team("tiny")), game.tasks("eval"), 1, 0)
    assert [{name: action.text for name, action in turn.actions.items()} for turn in played.turns] == [
        {"a1": "one", "a2": "two"}
    ] * 2


@pytest.mark.slow
def test_the_table_has_every_situation_and_its_numbers(tmp_path: Path) -> None:
    """In a game that pays half for each agent that writes a digit, a silent agent costs what it earned."""
    game = Toy(horizon=2, num_eval=2)
    runs = [team("tiny", max_new_tokens=4), team("tiny", max_new_tokens=4)]
    table = cross_play.measure(game, runs, {}, 3, 5)
    rows = {row.label: row.cells["team return"][0] for row in table.rows}
    expected = ["trained team", "without a1", "a1 silent after turn 1", "a1 repeats turn 1"]
    expected += ["without a2", "a2 silent after turn 1", "a2 repeats turn 1", "a1 of another run"]
    assert list(rows) == expected
    both = rows["without a1"] + rows["without a2"]
    assert rows["trained team"] <= 2.0
    assert rows["without a1"] <= 1.0  # at most half of each of two turns
    assert rows["without a1"] <= rows["a1 silent after turn 1"] + 1e-6
    assert both > 0
    # the two runs are the same agents here, so every team of the matrix is
    assert len({cell for line in table.matrix for cell in line}) == 1
    assert rows["a1 of another run"] == pytest.approx(table.matrix[0][1][0])
    cross_play.write(tmp_path, table, game, ["a", "b"], 3, 5)
    assert json.loads((tmp_path / "table.json").read_text())["matrix"][0][0] == list(table.matrix[0][0])
    assert "| without a1 | 2 |" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_returns_below_zero_are_drawn(tmp_path: Path) -> None:
    worst, bad = (-3.0, -4.0, -2.0), (-1.0, -1.5, -0.5)
    rows = [Row("trained team", 2, {"team return": bad})]
    cross_play.draw(tmp_path / "table.png", cross_play.Table(rows, [[worst, bad], [bad, worst]]), "a1")
    assert (tmp_path / "table.png").stat().st_size > 5000
