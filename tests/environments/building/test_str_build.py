import json
import random
import time
from pathlib import Path

import numpy as np
import pytest

from built import pair, play
from collm.environments.building.lettering import GLYPHS, area, compare, draw_word, random_figures, targets
from collm.environments.building.str_build import StrBuild
from collm.environments.building.str_rules import checkerboard, command, score_build
from collm.errors import ConfigurationError
from collm.trajectory import Task, Trajectory

VECTORS = [
    json.loads(line) for line in (Path(__file__).parent / "str_build_vectors.jsonl").read_text("utf-8").splitlines()
]
PALETTES = [["oak_planks", "stone"], ["white_concrete", "obsidian"]]
TEAMS = {
    1: {"solo": ["oak_planks", "stone"]},
    2: None,
    3: {"a": ["oak_planks"], "b": ["stone"], "c": ["obsidian"]},
}
SQUARE = Task("square", {"rows": ("##", "#.")})


def perfect(environment, rows):
    plan = checkerboard(rows, environment.blocks)
    return {
        agent_id: "\n".join(command(cell, block) for cell, (owner, block) in plan.items() if owner == agent_id)
        for agent_id in environment.agent_ids
    }


class TestScore:
    def test_paper_form_by_hand(self):
        # ##   targets 3, background 1.     o w    two targets covered, one block beside the target
        # #.                                . w    pairs: o-w above, w-w on the right
        world = {(0, 1, 0): "oak_planks", (1, 1, 0): "white_concrete", (1, 0, 0): "white_concrete"}
        score = score_build(("##", "#."), world, PALETTES)
        # 2 * 2/3 - 1.5 * 1/3 - 1/2 = 1.3333 - 0.5 - 0.5
        assert score.terms == pytest.approx({"coverage": 4 / 3, "extra": -0.5, "adjacency": -0.5})
        assert score.total == pytest.approx(1 / 3)

    def test_released_form_by_hand(self):
        world = {(0, 1, 0): "oak_planks", (1, 1, 0): "white_concrete", (1, 0, 0): "white_concrete"}
        score = score_build(("##", "#."), world, PALETTES, "released")
        # extra: 1 of 1 background cell. Neither stone nor obsidian is there, so both palettes are incomplete.
        # 2 * 2/3 - 1.5 * 1/1 - 1/2 - 0.25 * 2 = 1.3333 - 1.5 - 0.5 - 0.5
        assert score.terms == pytest.approx({"coverage": 4 / 3, "extra": -1.5, "adjacency": -0.5, "palette": -0.5})
        assert score.total == pytest.approx(-7 / 6)

    def test_an_empty_world_scores_nothing(self):
        assert score_build(("##", "#."), {}, PALETTES).total == 0.0
        assert score_build(("##", "#."), {}, PALETTES, "released").total == -0.5

    @pytest.mark.parametrize("vector", VECTORS, ids=[vector["case"] for vector in VECTORS])
    def test_released_form_agrees_with_recorded_cases(self, vector):
        agent_ids = [f"builder_{index}" for index in range(len(vector["blocks"]))]
        environment = StrBuild(
            blocks=dict(zip(agent_ids, vector["blocks"], strict=True)),
            reward="released",
            max_commands=vector["max_commands"],
            horizon=1,
        )
        task = Task("vector", {"rows": vector["rows"]})
        trajectory, _ = play(environment, task, [dict(zip(agent_ids, vector["actions"], strict=True))])
        (turn,) = trajectory.turns
        assert turn.reward == pytest.approx(vector["reward"], abs=1e-9)
        assert turn.terms == pytest.approx(vector["terms"], abs=1e-9)
        assert turn.info["counts"] == vector["counts"]
        assert turn.info["world"] == vector["world"]
        assert list(turn.info["accepted"].values()) == vector["accepted"]
        assert list(turn.info["rejected"].values()) == vector["rejected"]
        assert environment.metrics(trajectory)["iou"] == pytest.approx(vector["iou"], abs=1e-9)

    @pytest.mark.parametrize("reward", ["paper", "released"])
    @pytest.mark.parametrize("team", [1, 2, 3])
    def test_a_checkerboard_reaches_the_best_reward(self, reward, team):
        environment = StrBuild(words=["ICML", "W"], blocks=TEAMS[team], reward=reward, horizon=1)
        for task in environment.tasks("train"):
            trajectory, _ = play(environment, task, [perfect(environment, task.data["rows"])])
            assert trajectory.total_reward == pytest.approx(environment.max_reward) == 2.0
            assert environment.metrics(trajectory) == pytest.approx(
                {
                    "score": 2.0,
                    "score_percent": 100.0,
                    "rejected_rate": 0.0,
                    "iou": 1.0,
                    "coverage": 1.0,
                    "extra": 0.0,
                    "adjacency": 0.0,
                }
            )

    def test_bounds_of_the_score(self):
        # The word with most background per target: L has 9 cells of 25, so -1 - 1.5 * 16 / 9.
        paper = StrBuild(words=["L", "I"], eval_words=["M"])
        assert (paper.min_reward, paper.max_reward) == pytest.approx((-1 - 1.5 * 16 / 9, 2.0))
        released = StrBuild(words=["L"], eval_words=["M"], reward="released")
        assert (released.min_reward, released.max_reward) == (-3.0, 2.0)
        task = paper.tasks("train")[0]
        rows = task.data["rows"]
        cells = [(x, y, 0) for x in range(5) for y in range(5)]
        mess = "\n".join(command(cell, "stone") for cell in cells if cell not in targets(rows))
        trajectory, _ = play(paper, task, [pair(mess)])
        assert trajectory.turns[0].reward == pytest.approx(paper.min_reward)

    def test_bounds_of_persistent_and_sparse_rewards(self):
        lowest = -1 - 1.5 * 16 / 9
        dense = StrBuild(words=["L"], eval_words=["M"], persistent=True)
        assert (dense.min_reward, dense.max_reward) == pytest.approx((lowest - 2, 2 - lowest))
        sparse = StrBuild(words=["L"], eval_words=["M"], persistent=True, reward_density="sparse")
        assert (sparse.min_reward, sparse.max_reward) == pytest.approx((lowest, 2.0))
        (task,) = dense.tasks("train")
        rows = task.data["rows"]
        cells = [(x, y, 0) for x in range(5) for y in range(5)]
        mess = "\n".join(command(cell, "stone") for cell in cells if cell not in targets(rows))
        cleanup = "\n".join(command(cell, "air") for cell in cells if cell not in targets(rows))
        best = perfect(dense, rows)
        worst_first, _ = play(dense, task, [pair(mess), {**best, "builder_1": cleanup + "\n" + best["builder_1"]}])
        assert worst_first.turns[1].reward == pytest.approx(dense.max_reward)


class TestTurns:
    def test_a_world_does_not_outlast_its_turn_unless_persistent(self):
        halves = [pair("/setblock 0 1 0 stone"), pair("", "/setblock 1 1 0 obsidian")]
        passing, _ = play(StrBuild(horizon=2), SQUARE, halves)
        assert passing.turns[1].info["world"] == [[1, 1, 0, "obsidian"]]
        # 2 * 1/3 each
        assert [turn.reward for turn in passing.turns] == pytest.approx([2 / 3, 2 / 3])
        lasting, _ = play(StrBuild(horizon=2, persistent=True), SQUARE, halves)
        assert lasting.turns[1].info["world"] == [[0, 1, 0, "stone"], [1, 1, 0, "obsidian"]]
        assert [turn.reward for turn in lasting.turns] == pytest.approx([2 / 3, 2 / 3])
        assert lasting.turns[1].info["score"] == pytest.approx(4 / 3)

    def test_air_takes_a_block_away(self):
        actions = [pair("/setblock 1 0 0 stone"), pair("", "/setblock 1 0 0 air")]
        trajectory, _ = play(StrBuild(horizon=2, persistent=True), SQUARE, actions)
        # one extra: -1.5 * 1/3, and its removal gives that back
        assert [turn.reward for turn in trajectory.turns] == pytest.approx([-0.5, 0.5])

    @pytest.mark.parametrize("reward", ["paper", "released"])
    def test_persistent_rewards_add_up_to_the_final_score(self, reward):
        for density in ("dense", "sparse"):
            environment = StrBuild(persistent=True, reward=reward, reward_density=density)
            rng = random.Random(3)
            demonstrations = [lambda state: environment.demonstrate(state, rng)] * 4  # noqa: B023
            trajectory, _ = play(environment, environment.tasks("train")[0], demonstrations)
            score = trajectory.turns[-1].info["score"]
            assert trajectory.total_reward == pytest.approx(score)
            assert environment.metrics(trajectory)["score"] == score
            assert all(environment.min_reward <= turn.reward <= environment.max_reward for turn in trajectory.turns)
            summed = {name: sum(turn.terms[name] for turn in trajectory.turns) for name in trajectory.turns[0].terms}
            assert sum(summed.values()) == pytest.approx(score)
            if density == "sparse":
                assert [turn.reward for turn in trajectory.turns[:-1]] == [0.0] * 3

    def test_sparse_rewards_of_passing_worlds_are_the_last_score(self):
        actions = [pair("/setblock 0 1 0 stone"), pair("/setblock 0 1 0 stone\n/setblock 0 0 0 oak_planks")]
        trajectory, _ = play(StrBuild(horizon=2, reward_density="sparse"), SQUARE, actions)
        assert [turn.reward for turn in trajectory.turns] == pytest.approx([0.0, 4 / 3])

    @pytest.mark.parametrize("density", ["dense", "sparse"])
    def test_a_score_above_the_threshold_ends_the_episode_with_its_reward(self, density):
        rows = SQUARE.data["rows"]
        environment = StrBuild(termination_score=1.9, reward_density=density)
        trajectory, _ = play(environment, SQUARE, [pair(), perfect(environment, rows), pair()])
        assert [turn.reward for turn in trajectory.turns] == pytest.approx([0.0, 2.0])
        equal = StrBuild(termination_score=2.0)
        assert len(play(equal, SQUARE, [perfect(equal, rows)] * 9)[0].turns) == equal.horizon

    def test_a_step_leaves_the_old_state_alone(self):
        environment = StrBuild(persistent=True)
        state, _ = environment.reset(SQUARE, random.Random(0))
        action = pair("/setblock 0 1 0 stone")
        first, second = environment.step(state, action), environment.step(state, action)
        assert first == second
        assert state.world == {}
        assert environment.step(first.state, pair()).reward == 0.0

    @pytest.mark.parametrize("persistent", [False, True])
    def test_any_text_is_a_legal_action(self, persistent):
        garbage = [
            "",
            "```",
            "\x00\ud800",
            "積み木 кирпич 🧱 " * 2000,
            "/setblock " * 10_000,
            "1" * 100_000,
            "x\n" * 50_000,
        ]
        for prompt in ("full", "compact"):
            environment = StrBuild(persistent=persistent, prompt=prompt)
            start = time.perf_counter()
            for text in garbage:
                trajectory, seen = play(environment, SQUARE, [pair(text, text)] * 4)
                assert trajectory.total_reward == 0.0
                assert all(len(text) < 2500 for shown in seen for text in shown.values())
            assert time.perf_counter() - start < 10.0


class TestObservations:
    def test_full_instructions_hold_what_is_needed(self):
        environment = StrBuild(words=["ICML"], eval_words=["C"])
        _, seen = play(environment, environment.tasks("train")[0], [])
        text = seen[0]["builder_2"]
        for needed in (
            "builder 2 of 2",
            "#####...####..#...#..#....",
            "/setblock x y z block",
            "0 0 0 to 25 4 0",
            "white_concrete, obsidian",
            "150 commands",
            "different materials",
            "later builder",
        ):
            assert needed in text
        assert "oak_planks" not in text
        assert "ICML" not in text

    def test_one_agent_hears_nothing_of_others(self):
        environment = StrBuild(blocks=TEAMS[1])
        _, seen = play(environment, SQUARE, [])
        assert "builder" not in seen[0]["solo"]

    @pytest.mark.parametrize("persistent", [False, True])
    @pytest.mark.parametrize("feedback", ["score", "position", "perfect", "none"])
    def test_instructions_and_feedback_agree_on_persistence(self, persistent, feedback):
        environment = StrBuild(persistent=persistent, feedback=feedback)
        _, seen = play(environment, SQUARE, [pair("/setblock 0 1 0 stone")] * 2)
        for shown in seen:
            for text in shown.values():
                assert ("stays from turn to turn" in text and "empty world" not in text) is persistent
                assert ("begins with an empty world" in text) is not persistent
        advice = [line for line in seen[1]["builder_2"].splitlines() if line.startswith("/setblock")]
        # Of the plan for 0 1 0, 1 1 0 and 0 0 0, the second builder owns those with odd x + y.
        expected = {"/setblock 0 1 0 white_concrete", "/setblock 0 1 0 obsidian"}
        assert len(expected & set(advice)) == (1 if feedback == "perfect" else 0)

    def test_following_perfect_feedback_is_perfect(self):
        for persistent in (False, True):
            environment = StrBuild(persistent=persistent, feedback="perfect", horizon=2)
            task = environment.tasks("train")[0]
            state, _ = environment.reset(task, random.Random(0))
            step = environment.step(state, environment.demonstrate(state, random.Random(1)))
            assert environment.step(step.state, step.observations).info["score"] == pytest.approx(2.0)

    def test_full_feedback(self):
        text = "/setblock 0 1 0 stone\n/setblock 1 0 0 oak_planks\n/setblock 0 0 0 obsidian\nHello\n/a\n/b\n/c"
        _, seen = play(StrBuild(), SQUARE, [pair(text)])
        lines = seen[1]["builder_1"].splitlines()
        # 2 * 1/3 - 1.5 * 1/3
        assert "Score of the team's build: 0.17; the best possible is 2.00." in lines
        assert "- /setblock 0 0 0 obsidian  (this is not one of your blocks)" in lines
        assert "- and 2 more" in lines
        assert lines[lines.index("1 +#") + 1] == "0 #x"
        assert "no effect" not in seen[1]["builder_2"]

    def test_compact_texts(self):
        _, seen = play(StrBuild(prompt="compact", horizon=3), SQUARE, [pair("/setblock 1 0 0 stone", "oops")] * 2)
        assert seen[0] == pair(
            "agent 1 of 2: oak_planks stone\n1 ##\n0 #.", "agent 2 of 2: white_concrete obsidian\n1 ##\n0 #."
        )
        assert seen[1] == pair("turn 2 of 3: rejected 0\n1 ##\n0 #x", "turn 2 of 3: rejected 1\n1 ##\n0 #x")
        assert seen[2]["builder_1"] == "turn 3 of 3: rejected 0\n1 ##\n0 #x"

    def test_compare(self):
        assert compare(("##", ".."), {(0, 1, 0): "stone", (1, 0, 0): "stone"}) == ("+#", ".x")


class TestDemonstrations:
    @pytest.mark.parametrize("team", [1, 2, 3])
    def test_they_parse_and_are_imperfect(self, team):
        environment = StrBuild(words=["ICML"], blocks=TEAMS[team], horizon=1)
        (task,) = environment.tasks("train")
        scores, slips, listed = [], 0, 0
        for seed in range(30):
            state, _ = environment.reset(task, random.Random(0))
            joint_action = environment.demonstrate(state, random.Random(seed))
            for agent_id, text in joint_action.items():
                reading = environment.read(state, agent_id, text)
                assert reading.rejected == []
                cells = [command.start for command in reading.accepted]
                on_target = [cell for cell in cells if cell in targets(task.data["rows"])]
                assert on_target == sorted(on_target, key=lambda cell: (-cell[1], cell[0]))
                slips += len(cells) - len(on_target)
                listed += len(cells)
            scores.append(environment.step(state, joint_action).reward)
        assert max(scores) < 2.0
        assert len(set(scores)) > 1
        assert slips / listed == pytest.approx(0.2, abs=0.04)
        assert listed / (30 * team * len(targets(task.data["rows"]))) == pytest.approx(0.35, abs=0.05)

    def test_they_add_only_what_is_missing_where_blocks_stay(self):
        environment = StrBuild(persistent=True)
        state, _ = environment.reset(SQUARE, random.Random(0))
        state = environment.step(state, pair("/setblock 0 1 0 stone")).state
        texts = [environment.demonstrate(state, random.Random(seed))["builder_1"] for seed in range(20)]
        assert not any("/setblock 0 1 0" in text for text in texts)
        assert any("/setblock 0 0 0" in text for text in texts)


class TestTasks:
    def test_default_splits_are_disjoint_letters(self):
        environment = StrBuild()
        train, evaluation = ({task.task_id for task in environment.tasks(split)} for split in ("train", "eval"))
        assert not train & evaluation
        assert len(train | evaluation) == 26

    def test_font(self):
        assert draw_word("IL", 2) == ("#####..#....", "..#....#....", "..#....#....", "..#....#....", "#####..#####")
        cells = {word: len(targets(draw_word(word, 2))) for word in ("I", "C", "M", "L", "MC", "LI", "LLM", "ICML")}
        assert cells == {"I": 13, "C": 11, "M": 13, "L": 9, "MC": 24, "LI": 22, "LLM": 31, "ICML": 46}
        assert area(draw_word("ICML", 2)) == 5 * 26
        assert len(set(GLYPHS.values())) == len(GLYPHS)

    def test_figures_are_seeded_distinct_connected_and_no_letters(self):
        figures = random_figures(200, random.Random(5))
        assert figures == random_figures(200, random.Random(5)) != random_figures(200, random.Random(6))
        assert len(set(figures) | set(GLYPHS.values())) == 200 + len(GLYPHS)
        for rows in figures[:50]:
            left = set(targets(rows))
            assert area(rows) == 25
            assert 7 <= len(left) <= 15
            border = [left.pop()]
            while border:
                x, y, z = border.pop()
                for cell in ((x + 1, y, z), (x - 1, y, z), (x, y + 1, z), (x, y - 1, z)):
                    if cell in left:
                        left.remove(cell)
                        border.append(cell)
            assert not left

    def test_figures_join_the_training_split_only(self):
        environment = StrBuild(words=["I"], eval_words=["C"], num_shapes=3, seed=1)
        assert [task.task_id for task in environment.tasks("train")] == ["word_I", "shape_0", "shape_1", "shape_2"]
        assert [task.task_id for task in environment.tasks("eval")] == ["word_C"]
        assert environment.tasks("train") == StrBuild(["I"], ["C"], num_shapes=3, seed=1).tasks("train")
        assert environment.tasks("train") != StrBuild(["I"], ["C"], num_shapes=3, seed=2).tasks("train")

    def test_words_from_a_file(self, tmp_path):
        path = tmp_path / "words.csv"
        path.write_text("\ufeffstring,difficulty\nI,1\n \nlm,x\nICML,3\nCLIM,3\n", encoding="utf-8")
        environment = StrBuild(path=str(path))
        assert [task.task_id for task in environment.tasks("train")] == ["word_I", "word_LM"]
        assert [task.task_id for task in environment.tasks("eval")] == ["word_ICML", "word_CLIM"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot be read"),
            (b"", "none is left to train on"),
            (b"word,difficulty\nI,1\n", "line 2: there is no column 'string'"),
            (b"string,difficulty\nI,1\nI,2\nC,1\n", "line 3: 'I' is listed twice"),
            (b"string,difficulty\nI,1\nA1,2\nC,1\n", "line 3: 'A1' has"),
            (b"string,difficulty\nI,1\nC,2\n", "none is left to train on"),
            (b"string\n\xff\xfe\n", "UTF-8"),
        ],
    )
    def test_bad_files(self, tmp_path, content, message):
        path = tmp_path / "words.csv"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=message) as error:
            StrBuild(path=str(path))
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": []}, "words is \\[\\]"),
        ({"words": "ICML"}, "give a list"),
        ({"eval_words": []}, "eval_words is"),
        ({"words": ["I", " i "]}, "'I' is listed twice"),
        ({"words": ["I"], "eval_words": ["i"]}, "word_I.*both splits"),
        ({"words": ["A1"]}, "letters A to Z"),
        ({"words": [" "]}, "is empty"),
        ({"words": [5]}, "not text"),
        ({"words": list("EHOSUY")}, "eval split has no tasks"),
        ({"path": "x.csv", "words": ["I"]}, "give either path or words"),
        ({"path": "/does/not/exist.csv"}, "cannot be read"),
        ({"num_eval": 0}, "num_eval is 0"),
        ({"num_shapes": -1}, "num_shapes is -1"),
        ({"num_shapes": 10**9}, "num_shapes is 1000000000; it must be a whole number of at least 0 and at most"),
        ({"seed": None}, "seed is None"),
        ({"spacing": -1}, "spacing is -1"),
        ({"blocks": {}}, "at least one agent"),
        ({"blocks": {"": ["stone"]}}, "no agent id"),
        ({"blocks": {"a": []}}, "a has no block"),
        ({"blocks": {"a": ["air"]}}, "a has no block"),
        ({"blocks": {"a": "stone"}}, "give a list of block names"),
        ({"blocks": {"a": ["oak planks"]}}, "oak planks"),
        ({"blocks": {"a": ["minecraft:stone"]}}, "without the prefix"),
        ({"blocks": {"a": ["cave_air"]}}, "counts as air"),
        ({"blocks": {"a": ["stone", "stone"]}}, "twice"),
        ({"horizon": 0}, "horizon is 0"),
        ({"horizon": True}, "horizon is True"),
        ({"persistent": "no"}, "persistent is 'no'"),
        ({"reward": "best"}, "reward is 'best'; choose one of paper, released"),
        ({"reward_density": "thin"}, "dense, sparse"),
        ({"termination_score": "high"}, "termination_score is 'high'"),
        ({"max_commands": 0}, "max_commands is 0"),
        ({"prompt": "long"}, "full, compact"),
        ({"feedback": "positions"}, "score, position, perfect, none"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        StrBuild(**arguments)


def test_render_and_metrics():
    environment = StrBuild(words=["ICML"], horizon=2)
    (task,) = environment.tasks("train")
    empty = Trajectory(task, 0, 2, 2.0)
    # Line 1 covers a target, line 2 a background cell, line 3 is rejected; so is "hm" of the other agent.
    trajectory, _ = play(environment, task, [pair("/setblock 0 0 0 stone\n/setblock 0 1 0 stone\n/setblock", "hm")])
    for each in (empty, trajectory):
        picture = environment.render(each)
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
    assert not np.array_equal(environment.render(empty), environment.render(trajectory))
    assert environment.metrics(empty)["iou"] == 0.0
    # 2 * 1/46 - 1.5 * 1/46 - 1/1; IoU 1 / (46 + 1)
    assert environment.metrics(trajectory) == pytest.approx(
        {
            "score": 0.5 / 46 - 1,
            "score_percent": 50 * (0.5 / 46 - 1),
            "rejected_rate": 0.5,
            "iou": 1 / 47,
            "coverage": 1 / 46,
            "extra": 1.0,
            "adjacency": 1.0,
        }
    )


def test_transcripts_are_plain_data():
    environment = StrBuild(horizon=1)
    trajectory, _ = play(environment, SQUARE, [pair("/setblock 0 1 0 stone\nhm")])
    assert json.loads(json.dumps(trajectory.record())) == trajectory.record()


def test_a_rejected_line_with_half_of_a_surrogate_pair_is_shown_as_text() -> None:
    environment = StrBuild(words=["I"], eval_words=["C"], feedback="position")
    state, _ = environment.reset(environment.tasks("train")[0], random.Random(0))
    step = environment.step(state, dict.fromkeys(environment.agent_ids, "/setblock 0 0 \ud800 stone"))
    for shown in step.observations.values():
        assert "- /setblock 0 0 ? stone  (coordinates must be plain integers)" in shown.splitlines()
        shown.encode("utf-8")
