import time

import pytest

from collm.environments.building.blocks import (
    REASONS,
    Command,
    Rules,
    build,
    command_lines,
    command_shares,
    from_plain,
    iou,
    neighbours,
    plain,
    read_commands,
    texture,
)

BOX = ((0, 0, 0), (4, 4, 2))
FLAT = Rules({"setblock"}, ("stone", "obsidian"), BOX, 100)
SOLID = Rules({"fill", "kill"}, ("stone", "obsidian"), BOX, 100, {"stone": 6})

GARBAGE = [
    "",
    " \n\t\n\u2028",
    "```",
    "``````",
    "/",
    "//setblock 0 0 0 stone",
    "١ ٢ ٣ 積み木 кирпич 🧱\n/setblock ١ ٢ 0 stone",
    "/setblock " + "9" * 100_000,
    "/setblock " + "9" * 5000 + " 0 0 stone",
    "1" * 100_000,
    "-" * 100_000,
    "/" * 100_000,
    "``" * 50_000,
    "```\n" * 25_000,
    "/setblock 0 0 0 stone\n" * 5000,
    "\x00\x1b[31m\x07 NaN inf ~1 ^2\ud800",
    "/fill 0 0 0 4 4 2 stone " + "x " * 50_000,
]


def reasons(text: str, rules: Rules) -> list[str]:
    return [reason for _, reason in read_commands(text, rules).rejected]


class TestCommandLines:
    def test_inside_of_first_closed_fence_counts_without_language_word(self):
        assert command_lines("Sure!\n```mc-function\n/a 1\n```\n/b\n```\n/c\n```") == ["/a 1"]

    def test_open_fence_is_an_ordinary_line(self):
        assert command_lines("```\n/a") == ["```", "/a"]

    def test_first_word_behind_the_fence_line_is_a_command(self):
        assert command_lines("```\nkill\n```") == ["kill"]
        assert command_lines("```kill```") == ["kill"]

    def test_one_list_marker_is_removed(self):
        text = "- /a\n* /b\n-- /c\n1. /d\n12) /e\n1.1. /f\n-\n3."
        assert command_lines(text) == ["/a", "/b", "/c", "/d", "/e", "1. /f"]


class TestReadCommands:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("/setblock 1 2 0 stone", Command("setblock", (1, 2, 0), (1, 2, 0), "stone")),
            ("SetBlock +1 02 0 minecraft:stone keep please", Command("setblock", (1, 2, 0), (1, 2, 0), "stone")),
            ("/  setblock 1 2 0 air", Command("setblock", (1, 2, 0), (1, 2, 0), "air")),
        ],
    )
    def test_spellings(self, line, expected):
        assert read_commands(line, FLAT).accepted == [expected]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("then /setblock 0 0 0 stone", "unknown_command"),
            ("//setblock 0 0 0 stone", "unknown_command"),
            ("/fill 0 0 0 1 1 1 stone", "unknown_command"),
            ("/", "unknown_command"),
            ("/setblock 0 0 0", "too_few_arguments"),
            ("/setblock 0 ~ 0 stone", "bad_coordinates"),
            ("/setblock 0 0.0 0 stone", "bad_coordinates"),
            ("/setblock 0,0,0 stone x y", "bad_coordinates"),
            ("/setblock 0 0 0 Stone", "block_not_allowed"),
            ("/setblock 0 0 0 stone[a=b]", "block_not_allowed"),
            ("/setblock 0 0 0 minecraft:minecraft:stone", "block_not_allowed"),
            ("/setblock 0 0 0 cave_air", "block_not_allowed"),
            ("/setblock 9 0 0 granite", "block_not_allowed"),
            ("/setblock 5 0 0 stone", "out_of_bounds"),
            ("/setblock 0 0 -1 stone", "out_of_bounds"),
        ],
    )
    def test_reasons(self, line, reason):
        reading = read_commands(line, FLAT)
        assert reading.accepted == []
        assert reading.rejected == [(line, reason)]
        assert reason in REASONS

    def test_only_accepted_commands_use_up_the_share(self):
        text = "nonsense\n/setblock 0 0 0 stone\nnonsense\n/setblock 1 0 0 stone\n/setblock 2 0 0 stone\nnonsense"
        rules = Rules(FLAT.verbs, FLAT.blocks, BOX, 2)
        assert len(read_commands(text, rules).accepted) == 2
        assert reasons(text, rules) == ["unknown_command"] * 2 + ["over_command_cap"] * 2

    def test_fill_reads_two_corners_in_any_order(self):
        (command,) = read_commands("/fill 4 0 2 3 0 0 obsidian", SOLID).accepted
        assert command.volume == 2 * 1 * 3
        assert sorted(command.cells) == [(x, 0, z) for x in (3, 4) for z in (0, 1, 2)]

    def test_fill_reasons_come_in_order(self):
        assert reasons("/fill 0 0 0 9 0 0 stone hollow", SOLID) == ["out_of_bounds"]
        assert reasons("/fill 0 0 0 4 4 0 stone hollow", SOLID) == ["extra_arguments"]
        assert reasons("/fill 0 0 0 4 4 0 stone", SOLID) == ["over_resource_limit"]

    def test_a_limit_counts_painted_cells_and_never_refunds(self):
        text = "\n".join(
            [
                "/fill 0 0 0 3 0 0 stone",  # 4 of 6
                "/fill 0 0 0 2 0 0 stone",  # 3 more would make 7
                "/fill 0 0 0 4 4 2 air",  # air is free and gives nothing back
                "/fill 0 0 0 1 0 0 stone",  # 6 of 6
                "/fill 0 0 0 0 0 0 stone",  # 7 of 6
                "/fill 0 0 0 4 4 2 obsidian",  # not limited
            ]
        )
        reading = read_commands(text, SOLID)
        assert [reason for _, reason in reading.rejected] == ["over_resource_limit"] * 2
        assert reading.used == {"stone": 6, "obsidian": 75}

    def test_kill_ignores_arguments_and_counts_as_a_command(self):
        rules = Rules({"fill", "kill"}, (), BOX, 1)
        reading = read_commands("/KILL @e[type=spider]\n/kill", rules)
        assert [command.verb for command in reading.accepted] == ["kill"]
        assert [reason for _, reason in reading.rejected] == ["over_command_cap"]
        assert reasons("/killall", rules) == ["unknown_command"]

    @pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
    def test_garbage_neither_raises_nor_takes_long(self, text):
        start = time.perf_counter()
        for rules in (FLAT, SOLID):
            reading = read_commands(text, rules)
            assert all(reason in REASONS and len(line) <= 120 for line, reason in reading.rejected)
        assert time.perf_counter() - start < 2.0


class TestWorld:
    def test_last_write_stays_and_air_empties(self):
        commands = [
            Command("fill", (0, 0, 0), (2, 0, 0), "stone"),
            Command("setblock", (1, 0, 0), (1, 0, 0), "air"),
            Command("kill"),
            Command("setblock", (2, 0, 0), (2, 0, 0), "obsidian"),
        ]
        before = {(4, 4, 0): "stone"}
        world = build(before, commands)
        assert world == {(0, 0, 0): "stone", (2, 0, 0): "obsidian", (4, 4, 0): "stone"}
        assert before == {(4, 4, 0): "stone"}
        assert from_plain(plain(world)) == world

    def test_textures(self):
        alike = [
            ("oak_planks", "birch_wood"),
            ("stone", "cobblestone"),
            ("smooth_stone", "stone_bricks"),
            ("end_stone", "mossy_stone_bricks"),
            ("white_concrete", "red_concrete"),
        ]
        assert all(texture(one) == texture(other) for one, other in alike)
        kinds = ["oak_planks", "stone", "white_concrete", "obsidian", "sandstone", "stone_stairs"]
        assert len({texture(kind) for kind in kinds}) == len(kinds)

    def test_neighbours_share_a_side(self):
        # s o   four pairs, none across the diagonal; the right column and the bottom row are equal
        # o o
        world = {(0, 0, 0): "obsidian", (1, 0, 0): "obsidian", (0, 1, 0): "stone", (1, 1, 0): "obsidian"}
        assert neighbours(world) == (2, 4)
        assert neighbours({}) == (0, 0)

    def test_iou(self):
        # 1 shared of 3 in either
        assert iou([(0, 0, 0), (1, 0, 0)], [(1, 0, 0), (2, 0, 0)]) == pytest.approx(1 / 3)
        assert iou([], []) == 0.0

    def test_command_shares(self):
        assert command_shares(300, 2) == [150, 150]
        assert command_shares(5, 2) == [3, 2]
        assert command_shares(7, 3) == [3, 2, 2]
