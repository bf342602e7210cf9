"""Maps of BridgeBuild: a river with lanes of pillars across it, of which only one lane is sound.

The banks are the top and the bottom row. A lane is a column with the same number of pillars in the upper and in the
lower half, at random rows. All lanes look alike: one is sound, and in every other one a single pillar is a fake, which
bears nothing. There are planks for one lane only, so a team that does not probe succeeds in one of `lanes` maps.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from collm.environments.games.grid import Cell
from collm.environments.games.grid_rules import different_maps
from collm.errors import ConfigurationError

# Columns from one lane to the next, so that no plank touches pillars of two lanes.
SPACING = 3


@dataclass(frozen=True)
class River:
    """One map.

    Args:
        width: Number of columns.
        height: Number of rows, both banks included.
        pillars: Whether the pillar in a cell is sound, by cell.
    """

    width: int
    height: int
    pillars: Mapping[Cell, bool]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> River:
        """The map of the plain data of a task."""
        return cls(data["width"], data["height"], {(x, y): sound for x, y, sound in data["pillars"]})

    @property
    def data(self) -> dict[str, Any]:
        """The map as plain data: `width`, `height`, and `pillars` as [x, y, sound]."""
        pillars = [[*cell, sound] for cell, sound in sorted(self.pillars.items())]
        return {"width": self.width, "height": self.height, "pillars": pillars}

    @property
    def fakes(self) -> list[Cell]:
        """Cells of fake pillars."""
        return [cell for cell, sound in self.pillars.items() if not sound]

    @property
    def water(self) -> int:
        """Number of cells in which a plank can lie."""
        return self.width * (self.height - 2) - len(self.pillars)

    def is_water(self, cell: Cell) -> bool:
        """Whether a plank can lie in `cell`."""
        return 0 <= cell[0] < self.width and 0 < cell[1] < self.height - 1 and cell not in self.pillars

    def gap(self, planks: Collection[Cell]) -> int:
        """Least number of further planks that join the banks, over cells that share a side; fakes bear nothing."""
        queue = deque([((x, 0), 0) for x in range(self.width)])
        done: set[Cell] = set()
        while queue:
            cell, cost = queue.popleft()
            if cell in done:
                continue
            done.add(cell)
            x, y = cell
            if y == self.height - 1:
                return cost
            for beside in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                inside = 0 <= beside[0] < self.width and 0 < beside[1] < self.height
                if not inside or self.pillars.get(beside) is False:
                    continue
                free = beside in planks or beside in self.pillars or beside[1] == self.height - 1
                (queue.appendleft if free else queue.append)((beside, cost + (not free)))
        return self.water + 1  # a wall of fakes


def random_rivers(count: int, width: int, height: int, lanes: int, pillars: int, seed: int) -> list[River]:
    """`count` different maps with `lanes` lanes of `pillars` pillars.

    Raises:
        ConfigurationError: The lanes or pillars do not fit, or there are fewer maps.
    """
    middle = height // 2
    upper, lower = range(1, middle), range(middle + 1, height - 1)
    if pillars // 2 > min(len(upper), len(lower)):
        raise ConfigurationError(
            f"pillars is {pillars}, but half of them have to fit into {min(len(upper), len(lower))} rows; lower "
            "pillars or raise height."
        )
    if (lanes - 1) * SPACING + 1 > width:
        raise ConfigurationError(
            f"{lanes} lanes, {SPACING} columns from one to the next, need a width of {(lanes - 1) * SPACING + 1}; "
            f"raise width from {width} or lower lanes."
        )
    rng = random.Random(f"rivers {seed}")

    def draw() -> River:
        slack = width - (lanes - 1) * SPACING - 1
        shifts = sorted(rng.randint(0, slack) for _ in range(lanes))
        columns = [lane * SPACING + shift for lane, shift in enumerate(shifts)]
        sound_lane = rng.randrange(lanes)
        cells: dict[Cell, bool] = {}
        for lane, x in enumerate(columns):
            rows = rng.sample(upper, pillars // 2) + rng.sample(lower, pillars // 2)
            fake = None if lane == sound_lane else rng.choice(rows)
            cells.update({(x, y): y != fake for y in rows})
        return River(width, height, cells)

    return different_maps(count, draw, "raise width")
