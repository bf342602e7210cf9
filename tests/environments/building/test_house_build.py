import json
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from built import pair, play
from collm.environments.building.blocks import Command, build
from collm.environments.building.blueprints import Blueprint, as_data, blueprint_data, halves, read_blueprints
from collm.environments.building.house_build import HouseBuild
from collm.environments.building.house_rules import block_limits, compare, corrections, divide_fills, score_house
from collm.environments.building.random_houses import random_houses
from collm.errors import ConfigurationError
from collm.trajectory import Task, Trajectory

VECTORS = [
    json.loads(line) for line in (Path(__file__).parent / "house_build_vectors.jsonl").read_text("utf-8").splitlines()
]
SMALL = {"size": (3, 3, 3), "level": 1, "num_houses": 6, "num_eval": 2}
# Four cells in one row of depth: two W on the ground, above them one O and an empty cell.
RECORD = {
    "task_id": "hut",
    "inventory": {"W": "white_concrete", "O": "obsidian", "A": "air"},
    "target_spec": {"layers": {"0": ["WW"], "1": ["OA"]}},
}
HUT = Task("hut", blueprint_data(RECORD, "here"))
HOUSE = Blueprint.of(HUT.data)
FLOOR = "/fill 0 0 0 1 0 0 white_concrete"
TEAMS = {
    1: {"solo": []},
    2: None,
    3: {"a": [], "b": [], "c": []},
}


def perfect(environment, task):
    """Commands of a perfect build; the last agent sees to the spiders."""
    house = Blueprint.of(task.data)
    state, _ = environment.reset(task, random.Random(0))
    palettes = {agent_id: palette or house.kinds for agent_id, palette in environment.blocks.items()}
    left = block_limits(house, palettes) if environment.limited_resources else {}
    shares = divide_fills(house.rectangles(house.world), palettes, left)
    texts = {
        agent_id: "\n".join(
            f"/fill {' '.join(map(str, fill.start))} {' '.join(map(str, fill.end))} {fill.block}" for fill in fills
        )
        for agent_id, fills in shares.items()
    }
    texts[environment.agent_ids[-1]] += "\n/kill"
    return texts


class TestScore:
    # Covered 2 of 3 solid cells, one of them with the wrong kind, and one block too many:
    # the ground left is right, the ground right is obsidian, the upper left is missing, the upper right is filled.
    WORLD = {(0, 0, 0): "white_concrete", (1, 0, 0): "obsidian", (1, 1, 0): "stone"}

    def test_paper_form_by_hand(self):
        score = score_house(HOUSE, self.WORLD, damage=4, health=5, killed=False, num_agents=2)
        # 2 * 2/3 - 1.5 * 1/3 - 0.2 * 4/5 = 1.3333 - 0.5 - 0.16
        assert score.terms == pytest.approx({"coverage": 4 / 3, "redundancy": -0.5, "spiders": -0.16})
        assert score.total == pytest.approx(4 / 3 - 0.66)

    def test_released_form_by_hand(self):
        score = score_house(HOUSE, self.WORLD, 4, 5, killed=False, num_agents=2, form="released")
        # Of 4 cells only the ground left is as drawn: 1/4 - 0.1 * 4/5 = 0.25 - 0.08
        assert score.terms == pytest.approx({"match": 0.25, "spiders": -0.08})
        # An empty world: the one cell that should be empty is. More damage than health counts as health.
        assert score_house(HOUSE, {}, 9, 5, False, 2, "released").total == pytest.approx(0.25 - 0.1)
        assert score_house(HOUSE, {}, 9, 5, True, 2, "released").total == pytest.approx(0.25)
        assert score_house(HOUSE, {}, 9, 5, False, 1, "released").total == pytest.approx(0.25)

    @pytest.mark.parametrize("vector", VECTORS, ids=[vector["case"] for vector in VECTORS])
    def test_released_form_agrees_with_recorded_cases(self, vector):
        record = {"inventory": vector["inventory"], "target_spec": {"layers": vector["layers"]}, "bbox": vector["bbox"]}
        task = Task("vector", blueprint_data(record, "here"))
        agent_ids = [f"builder_{index}" for index in range(len(vector["blocks"]))]
        environment = HouseBuild(
            **SMALL,
            blocks=dict(zip(agent_ids, vector["blocks"], strict=True)),
            reward="released",
            max_commands=vector["max_commands"],
            limited_resources=vector["limited"],
            player_health=vector["health"],
            horizon=1,
        )
        joint_action = dict(zip(agent_ids, vector["actions"], strict=True))
        trajectory, _ = play(environment, task, [joint_action], tuple(vector["attacks"]))
        (turn,) = trajectory.turns
        assert turn.reward == pytest.approx(vector["reward"], abs=1e-9)
        assert turn.terms == pytest.approx({"match": vector["match"], "spiders": -vector["penalty"]}, abs=1e-9)
        assert {name: turn.info["counts"][name] for name in vector["counts"]} == vector["counts"]
        assert turn.info["world"] == vector["world"]
        assert list(turn.info["accepted"].values()) == vector["accepted"]
        assert list(turn.info["rejected"].values()) == vector["rejected"]
        assert environment.metrics(trajectory)["iou"] == pytest.approx(vector["iou"], abs=1e-9)
        state, _ = environment.reset(task, random.Random(0))
        readings = [environment.read(state, agent_id, joint_action[agent_id]) for agent_id in agent_ids]
        assert [reading.used for reading in readings] == vector["used"]
        if vector["limited"]:
            house = Blueprint.of(task.data)
            assert block_limits(house, dict.fromkeys(agent_ids, house.kinds))["builder_0"] == vector["limits"]

    @pytest.mark.parametrize("reward", ["paper", "released"])
    @pytest.mark.parametrize("limited", [False, True])
    @pytest.mark.parametrize("team", [1, 2, 3])
    def test_divided_fills_reach_the_best_reward(self, reward, limited, team):
        environment = HouseBuild(
            num_houses=3, blocks=TEAMS[team], reward=reward, limited_resources=limited, horizon=1, size=(5, 6, 5)
        )
        best = 2.0 if reward == "paper" else 1.0
        for task in environment.tasks("train"):
            trajectory, _ = play(environment, task, [perfect(environment, task)])
            assert trajectory.total_reward == pytest.approx(environment.max_reward) == best
            assert environment.metrics(trajectory) == pytest.approx(
                {
                    "score": best,
                    "score_percent": 100.0,
                    "rejected_rate": 0.0,
                    "iou": 1.0,
                    "iou_color": 1.0,
                    "coverage": 1.0,
                    "redundancy": 0.0,
                    "hp": 100.0,
                }
            )

    def test_bounds(self, tmp_path):
        path = tmp_path / "houses.json"
        path.write_text(json.dumps([RECORD, {**RECORD, "task_id": "x", "target_spec": {"layers": {"0": ["WA"]}}}]))
        settings = {"path": str(path), "num_eval": 1, "limited_resources": False}
        # The most empty cells per solid cell: 1 of 1 in the second house, so -1.5 - 0.2.
        paper = HouseBuild(**settings)
        assert (paper.min_reward, paper.max_reward) == pytest.approx((-1.7, 2.0))
        peaceful = HouseBuild(**settings, num_spiders=0)
        assert (peaceful.min_reward, peaceful.max_reward) == pytest.approx((-1.5, 2.0))
        lasting = HouseBuild(**settings, persistent=True)
        assert (lasting.min_reward, lasting.max_reward) == pytest.approx((-3.7, 3.7))
        released = HouseBuild(**settings, reward="released")
        assert (released.min_reward, released.max_reward) == pytest.approx((-0.1, 1.0))
        (task,) = paper.tasks("eval")
        worst, _ = play(paper, task, [pair("/fill 1 0 0 1 0 0 obsidian")], attacks=(3, 3, 3))
        assert worst.total_reward == pytest.approx(paper.min_reward)


class TestTurns:
    def test_what_outlasts_a_turn(self):
        actions = [pair(FLOOR, "/kill"), pair("/fill 0 1 0 0 1 0 obsidian")]
        passing, _ = play(HouseBuild(**SMALL, horizon=2, limited_resources=False), HUT, actions, attacks=(5,))
        # 2 * 2/3 and no spiders; then 2 * 1/3 - 0.2, for they are back
        assert [turn.reward for turn in passing.turns] == pytest.approx([4 / 3, 2 / 3 - 0.2])
        settings = {**SMALL, "horizon": 2, "limited_resources": False, "persistent": True}
        lasting, _ = play(HouseBuild(**settings), HUT, actions, attacks=(5,))
        assert [turn.reward for turn in lasting.turns] == pytest.approx([4 / 3, 2 / 3])
        assert lasting.turns[-1].info["score"] == pytest.approx(2.0)
        late, _ = play(HouseBuild(**settings), HUT, actions[::-1], attacks=(5,))
        # 2 * 1/3 - 0.2, then 2 * 2/3 more and the penalty back
        assert [turn.reward for turn in late.turns] == pytest.approx([2 / 3 - 0.2, 4 / 3 + 0.2])

    def test_block_limits_are_per_turn_or_per_persistent_episode(self):
        # Two W of two agents: ceil(2/2) + floor(2/4) = 1 each.
        one = "/fill 0 0 0 0 0 0 white_concrete"
        for persistent, reasons in ((False, []), (True, ["over_resource_limit"])):
            environment = HouseBuild(**SMALL, persistent=persistent)
            trajectory, seen = play(environment, HUT, [pair(one), pair(one)])
            assert [reason for _, reason in trajectory.turns[1].info["rejected"]["builder_1"]] == reasons
            assert ("You have left: obsidian 1." in seen[1]["builder_1"]) is persistent
            assert ("stock is full again" in seen[1]["builder_1"]) is not persistent

    @pytest.mark.parametrize("reward", ["paper", "released"])
    @pytest.mark.parametrize("density", ["dense", "sparse"])
    def test_persistent_rewards_add_up_to_the_final_score(self, reward, density):
        environment = HouseBuild(**SMALL, persistent=True, reward=reward, reward_density=density)
        rng = random.Random(3)
        task = environment.tasks("train")[0]
        trajectory, _ = play(environment, task, [lambda state: environment.demonstrate(state, rng)] * 4)
        score = trajectory.turns[-1].info["score"]
        assert trajectory.total_reward == pytest.approx(score)
        assert environment.metrics(trajectory)["score"] == score
        assert all(environment.min_reward <= turn.reward <= environment.max_reward for turn in trajectory.turns)
        assert sum(sum(turn.terms.values()) for turn in trajectory.turns) == pytest.approx(score)
        if density == "sparse":
            assert [turn.reward for turn in trajectory.turns[:-1]] == [0.0] * 3

    def test_a_score_above_the_threshold_ends_the_episode(self):
        environment = HouseBuild(**SMALL, termination_score=1.9)
        task = environment.tasks("train")[0]
        empty = dict.fromkeys(environment.agent_ids, "")
        trajectory, _ = play(environment, task, [empty, perfect(environment, task), empty])
        assert len(trajectory.turns) == 2
        assert trajectory.turns[1].reward == pytest.approx(2.0)

    def test_spiders_are_drawn_from_the_generator_of_the_episode(self):
        environment = HouseBuild(**SMALL)
        drawn = [environment.reset(HUT, random.Random(seed))[0].attacks for seed in (0, 0, *range(30))]
        assert drawn[0] == drawn[1]
        assert {attack for attacks in drawn for attack in attacks} == {1, 2, 3}
        assert {len(attacks) for attacks in drawn} == {3}
        assert HouseBuild(**SMALL, num_spiders=0).reset(HUT, random.Random(0))[0].attacks == ()

    def test_any_text_is_a_legal_action(self):
        garbage = ["", "```", "\x00\ud800", "積み木 🧱 " * 5000, "/fill " * 10_000, "1" * 100_000, "x\n" * 30_000]
        for persistent in (False, True):
            environment = HouseBuild(**SMALL, persistent=persistent, num_spiders=0, feedback="perfect")
            start = time.perf_counter()
            for text in garbage:
                trajectory, seen = play(environment, HUT, [pair(text, text)] * 4)
                assert trajectory.total_reward == 0.0
                assert all(len(text) < 3000 for shown in seen for text in shown.values())
            assert time.perf_counter() - start < 10.0

    def test_a_step_leaves_the_old_state_alone(self):
        environment = HouseBuild(**SMALL, persistent=True)
        state, _ = environment.reset(HUT, random.Random(0))
        action = pair("/fill 0 0 0 0 0 0 white_concrete", "/kill")
        assert environment.step(state, action) == environment.step(state, action)
        assert (state.world, state.used, state.killed) == ({}, {}, False)


class TestObservations:
    def test_full_instructions_hold_what_is_needed(self):
        state, _ = HouseBuild(**SMALL).reset(HUT, random.Random(0))
        text = HouseBuild(**SMALL).first_observation(replace(state, attacks=(3, 1)), "builder_2")
        for needed in (
            "builder 2 of 2",
            "the box from 0 0 0 to 1 1 0",
            "y = 0: 0 0 0 1 0 0 white_concrete",
            "y = 1: 0 1 0 0 1 0 obsidian",
            "white_concrete 1, obsidian 1",
            "3, 1 damage, 4 in all",
            "health is 5",
            "/kill",
            "/fill x1 y1 z1 x2 y2 z2 block",
            "dropped whole",
            "300 commands",
            "later builder",
        ):
            assert needed in text
        _, seen = play(HouseBuild(**SMALL, blocks=TEAMS[1], num_spiders=0, limited_resources=False), HUT, [])
        for absent in ("builder", "kill", "spider", "damage", "dropped"):
            assert absent not in seen[0]["solo"]

    @pytest.mark.parametrize("persistent", [False, True])
    @pytest.mark.parametrize("feedback", ["score", "position", "perfect", "none"])
    def test_instructions_and_feedback_agree_on_persistence(self, persistent, feedback):
        environment = HouseBuild(**SMALL, persistent=persistent, feedback=feedback)
        _, seen = play(environment, HUT, [pair("/fill 0 0 0 0 0 0 white_concrete", "/kill\nhm")] * 2)
        for shown in seen:
            for text in shown.values():
                assert ("stays from turn to turn" in text and "empty world" not in text) is persistent
                assert ("begins with an empty world" in text) is not persistent
        later = "\n".join(seen[1].values())
        assert ("hm" in later) is (feedback != "none")
        assert ("spiders were stopped" in later) is (feedback != "none")
        assert ("spiders are back" in later) is not persistent
        assert ("y 1\n0 #." in later) is (feedback in {"position", "perfect"})
        advice = [line for line in later.splitlines() if line.startswith("/")]
        expected = {"/fill 1 0 0 1 0 0 white_concrete", "/fill 0 1 0 0 1 0 obsidian"}
        if not persistent:
            expected |= {"/fill 0 0 0 0 0 0 white_concrete", "/kill"}
        assert set(advice) == (expected if feedback == "perfect" else set())

    @pytest.mark.parametrize("persistent", [False, True])
    def test_following_perfect_feedback_is_perfect(self, persistent):
        environment = HouseBuild(persistent=persistent, feedback="perfect", limited_resources=not persistent)
        for task in environment.tasks("train")[:4]:
            state, _ = environment.reset(task, random.Random(0))
            step = environment.step(state, environment.demonstrate(state, random.Random(1)))
            assert environment.step(step.state, step.observations).info["score"] == pytest.approx(2.0)

    def test_compact_texts(self):
        environment = HouseBuild(**SMALL, prompt="compact", horizon=3, feedback="position")
        state, _ = environment.reset(HUT, random.Random(0))
        state = replace(state, attacks=(2, 1))
        assert environment.first_observation(state, "builder_1") == (
            "agent 1 of 2: white_concrete 1, obsidian 1\nspiders 3 of 5\n"
            "/fill 0 0 0 1 0 0 white_concrete\n/fill 0 1 0 0 1 0 obsidian"
        )
        shown = environment.step(
            state, pair("/fill 0 0 0 0 0 0 obsidian\nhm", "/fill 1 1 0 1 1 0 obsidian")
        ).observations
        assert shown == pair(
            "turn 2 of 3: rejected 1, spiders 3\ny 0\n0 !#\ny 1\n0 #x",
            "turn 2 of 3: rejected 0, spiders 3\ny 0\n0 !#\ny 1\n0 #x",
        )
        assert environment.step(state, pair("/kill")).observations["builder_1"].startswith("turn 2 of 3: rejected 0\n")

    def test_compare_and_to_do(self):
        world = {(0, 0, 0): "white_concrete", (1, 0, 0): "obsidian", (1, 1, 0): "obsidian"}
        assert compare(HOUSE, world) == ["y 0", "0 +!", "y 1", "0 #x"]
        wrong = corrections(HOUSE, world)
        assert wrong == {(1, 0, 0): "white_concrete", (0, 1, 0): "obsidian", (1, 1, 0): "air"}
        assert build(world, HOUSE.rectangles(wrong)) == HOUSE.world


class TestDemonstrations:
    @pytest.mark.parametrize("team", [1, 2, 3])
    def test_they_parse_and_are_imperfect(self, team):
        environment = HouseBuild(num_houses=4, size=(4, 4, 4), blocks=TEAMS[team], horizon=1)
        scores, kills = [], 0
        for seed in range(30):
            state, _ = environment.reset(environment.tasks("train")[seed % 4], random.Random(0))
            joint_action = environment.demonstrate(state, random.Random(seed))
            for agent_id, text in joint_action.items():
                reading = environment.read(state, agent_id, text)
                assert reading.rejected == []
                kills += sum(command.verb == "kill" for command in reading.accepted)
            scores.append(environment.step(state, joint_action).reward)
        assert kills / (30 * team) == pytest.approx(0.3, abs=0.2)
        assert len(set(scores)) > 20
        assert sum(scores) / 30 < 1.95

    def test_they_add_only_what_is_missing_where_blocks_stay(self):
        environment = HouseBuild(**SMALL, persistent=True, limited_resources=False)
        state, _ = environment.reset(HUT, random.Random(0))
        state = environment.step(state, pair(FLOOR, "/kill")).state
        texts = [environment.demonstrate(state, random.Random(seed))["builder_1"] for seed in range(20)]
        assert not any("white_concrete" in text or "kill" in text for text in texts)
        assert any("/fill 0 1 0 0 1 0 obsidian" in text for text in texts)


class TestBlueprints:
    def test_rectangles_join_rows_and_do_not_overlap(self):
        record = {
            "inventory": {"W": "w", "O": "o", "A": "air"},
            "target_spec": {"layers": [{"y": 3, "rows": ["WWO", "WWA", "OWW"]}]},
            "bbox": {"from": [5, 3, -1], "to": [7, 3, 1]},
        }
        house = Blueprint.of(blueprint_data(record, "here"))
        assert house.rectangles(house.world) == [
            Command("fill", (7, 3, -1), (7, 3, -1), "o"),  # does not go on in the second row
            Command("fill", (5, 3, -1), (6, 3, 0), "w"),  # goes on once
            Command("fill", (5, 3, 1), (5, 3, 1), "o"),
            Command("fill", (6, 3, 1), (7, 3, 1), "w"),
        ]
        assert house.counts == {"w": 6, "o": 2}
        assert house.size == 9

    def test_block_limits(self):
        # 7 W of two agents: ceil(7/2) + floor(7/4) = 4 + 1; of one: 7 + 3. X has no cell.
        record = {"inventory": {"W": "w", "X": "x"}, "target_spec": {"layers": {"0": ["WWWWWWW"]}}}
        house = Blueprint.of(blueprint_data(record, "here"))
        assert block_limits(house, {"a": ("w", "x", "y"), "b": ("w",)}) == {"a": {"w": 5, "x": 0}, "b": {"w": 5}}
        assert block_limits(house, {"a": ("w",), "b": ("y",)}) == {"a": {"w": 10}, "b": {}}

    def test_divide_fills_splits_a_fill_that_is_too_large_for_every_agent(self):
        fill = Command("fill", (0, 0, 0), (3, 0, 1), "w")
        shares = divide_fills([fill], {"a": ("w",), "b": ("w",), "c": ("x",)}, {"a": {"w": 5}, "b": {"w": 3}})
        cells = [cell for fills in shares.values() for piece in fills for cell in piece.cells]
        assert sorted(cells) == sorted(fill.cells)
        assert sum(piece.volume for piece in shares["a"]) == 5
        assert shares["c"] == []

    @pytest.mark.parametrize("corners", [((0, 0, 0), (4, 0, 1)), ((4, 0, 1), (0, 0, 0)), ((0, 3, 0), (0, 0, 0))])
    def test_halves_split_the_cells(self, corners):
        fill = Command("fill", *corners, "w")
        pieces = [set(half.cells) for half in halves(fill)]
        assert pieces[0] | pieces[1] == set(fill.cells)
        assert not pieces[0] & pieces[1]

    def test_files_hold_a_list_or_one_house(self, tmp_path):
        path = tmp_path / "houses.json"
        plain = {**RECORD, "count": {"W": 2}, "variant": "any", "bbox": None}
        del plain["task_id"]
        path.write_text(json.dumps(plain), "utf-8")
        assert read_blueprints(str(path)) == {"house_build_0001": HUT.data}
        path.write_text(json.dumps([plain, RECORD]), "utf-8")
        assert list(read_blueprints(str(path))) == ["house_build_0001", "hut"]
        with pytest.raises(ConfigurationError, match="'hut' is the same as 'house_build_0001'"):
            HouseBuild(path=str(path), num_eval=1)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"inventory": None}, "'inventory' must be an object"),
            ({"inventory": {"WW": "w"}}, "must be a letter and a word"),
            ({"inventory": {"W": None}}, "must be a letter and a word"),
            ({"target_spec": None}, "'target_spec' must hold"),
            ({"target_spec": {"layers": [["WW"]]}}, "objects with y and rows"),
            ({"target_spec": {"layers": {"top": ["WW"]}}}, "objects with y and rows"),
            ({"target_spec": {"layers": {"0": "WW"}}}, "rows of layer 0"),
            ({"target_spec": {"layers": [{"y": 0, "rows": ["W"]}, {"y": 0, "rows": ["W"]}]}}, "appears twice"),
            ({"target_spec": {"layers": {"0": ["WW"], "1": ["W"]}}}, "layer 1 is not 1 rows of 2"),
            ({"target_spec": {"layers": {"0": ["WX"]}}}, r"uses \['X'\]"),
            ({"target_spec": {"layers": {"0": ["AA"]}}}, "all air"),
            ({"target_spec": {"layers": {"0": ["WW"], "2": ["WW"]}}}, "do not fill the box"),
            ({"target_spec": {"layers": {"0": ["WW"]}, "size": [1, 2, 3]}}, "'size' says"),
            ({"bbox": {"from": [0, 0, 0], "to": [5, 1, 0]}}, "do not fill the box"),
            ({"bbox": [0, 0]}, "'bbox' must hold"),
            ({"bbox": {"from": [0, 0], "to": [1, "1", 0]}}, "'bbox' must hold"),
        ],
    )
    def test_bad_records_are_named(self, tmp_path, change, message):
        path = tmp_path / "houses.json"
        path.write_text(json.dumps([RECORD, {**RECORD, "task_id": "other", **change}]), "utf-8")
        with pytest.raises(ConfigurationError, match=message) as error:
            HouseBuild(path=str(path), num_eval=1)
        assert f"{path}, house 2" in str(error.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "cannot read"), ("{", "not JSON"), ("[]", "no house"), ("[3]", "house 1: expected"), ("", "not JSON")],
    )
    def test_bad_files(self, tmp_path, content, message):
        path = tmp_path / "houses.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigurationError, match=message):
            HouseBuild(path=str(path))


class TestRandomHouses:
    @pytest.mark.parametrize("level", [1, 2, 3])
    @pytest.mark.parametrize("size", [(3, 3, 3), (6, 7, 7), (3, 8, 5)])
    def test_they_are_seeded_distinct_and_inside_the_box(self, level, size):
        materials = ("a", "b", "c", "d")
        houses = random_houses(20, size, level, materials, random.Random(1))
        assert houses == random_houses(20, size, level, materials, random.Random(1))
        assert houses != random_houses(20, size, level, materials, random.Random(2))
        assert len({frozenset(house.items()) for house in houses}) == 20
        for world in houses:
            house = Blueprint.of(as_data(world, size))
            assert house.world == world
            assert house.box == ((0, 0, 0), tuple(side - 1 for side in size))
            assert {y for _, y, _ in world} == set(range(size[1]))
            assert set(house.world.values()) == set(house.kinds) <= set(materials)

    def test_levels_differ_in_openings(self):
        def closed(level):
            houses = random_houses(8, (5, 5, 5), level, ("a", "b"), random.Random(0))
            ring = [(x, z) for x in range(5) for z in range(5) if x in (0, 4) or z in (0, 4)]
            return [all((x, 1, z) in house for x, z in ring) for house in houses]

        assert all(closed(1))
        assert not any(closed(2))
        assert not any(closed(3))

    def test_splits_do_not_overlap(self):
        environment = HouseBuild(**{**SMALL, "num_houses": 60, "num_eval": 20})
        splits = [environment.tasks("train"), environment.tasks("eval")]
        assert [len(split) for split in splits] == [60, 20]
        train, held_out = ({repr(task.data) for task in split} for split in splits)
        assert len(train | held_out) == 80
        assert environment.tasks("train") == HouseBuild(**{**SMALL, "num_houses": 60, "num_eval": 20}).tasks("train")

    def test_more_houses_than_there_are(self):
        with pytest.raises(ConfigurationError, match="different houses, got only 1 of size"):
            HouseBuild(size=(3, 3, 3), level=1, num_houses=5, blocks={"a": ["stone"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "/does/not/exist.json"}, "cannot read"),
        ({"num_eval": 0}, "num_eval is 0"),
        ({"num_houses": 0}, "num_houses is 0"),
        ({"size": (3, 3)}, "3 whole numbers"),
        ({"size": (3, 2, 3)}, "size is 2"),
        ({"size": 3}, "3 whole numbers"),
        ({"level": 4}, "level is 4; it must be a whole number of at least 1 and at most 3"),
        ({"seed": -1}, "seed is -1"),
        ({"blocks": {}}, "at least one agent"),
        ({"blocks": {"a": ["air"]}}, "no block to build with"),
        ({"limited_resources": 1}, "limited_resources is 1"),
        ({"num_spiders": -1}, "num_spiders is -1"),
        ({"spider_damage": (3, 1)}, "smaller number first"),
        ({"spider_damage": [1]}, "2 whole numbers"),
        ({"player_health": 0}, "player_health is 0"),
        ({"horizon": 0}, "horizon is 0"),
        ({"reward": "match"}, "paper, released"),
        ({"feedback": "hint"}, "score, position, perfect, none"),
        ({"prompt": None}, "full, compact"),
        ({"termination_score": float("nan")}, "termination_score is nan"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        HouseBuild(**arguments)


def test_houses_that_the_team_cannot_build_are_refused(tmp_path):
    path = tmp_path / "houses.json"
    path.write_text(json.dumps([RECORD, {**RECORD, "task_id": "x"}]), "utf-8")
    with pytest.raises(ConfigurationError, match=r"'hut' needs \['obsidian'\], which no agent has"):
        HouseBuild(path=str(path), num_eval=1, blocks={"a": ["white_concrete"]})
    with pytest.raises(ConfigurationError, match="holds 2 houses, of which num_eval = 2"):
        HouseBuild(path=str(path))


def test_render_metrics_and_transcript():
    environment = HouseBuild(**SMALL, horizon=2, limited_resources=False)
    empty = Trajectory(HUT, 0, 2, 2.0)
    action = pair("/fill 0 0 0 1 0 0 obsidian\n/fill 0 1 0 1 1 0 obsidian", "hm")
    trajectory, _ = play(environment, HUT, [action], attacks=(2, 2))
    for each in (empty, trajectory):
        picture = environment.render(each)
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
    assert not np.array_equal(environment.render(empty), environment.render(trajectory))
    assert environment.metrics(empty)["hp"] == 100.0
    # Of 4 cells 3 are solid and all 4 are filled, only the obsidian one as drawn.
    # 2 * 3/3 - 1.5 * 1/3 - 0.2 * 4/5 = 1.34; health left 1 of 5
    assert environment.metrics(trajectory) == pytest.approx(
        {
            "score": 1.34,
            "score_percent": 67.0,
            "rejected_rate": 1 / 3,
            "iou": 3 / 4,
            "iou_color": 1 / 4,
            "coverage": 1.0,
            "redundancy": 1 / 3,
            "hp": 20.0,
        }
    )
    assert json.loads(json.dumps(trajectory.record())) == trajectory.record()
