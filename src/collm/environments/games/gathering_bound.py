"""How often any team could succeed in ResourceGathering without a message, for two agents: an upper bound, exactly.

Without messages nothing that an agent is shown depends on the other one. As long as it has seen no camp but its own,
all that it has seen is empty plain, so its policy is one fixed walk, the best of all walks. An agent that needs m
turns to take everything succeeds if it sees anything of the right camp by the end of turn H - m (it is then granted
full knowledge), or if it takes the right cells unseen in turn H - m + 1. The team succeeds at most as often as either
agent. The mean is over all places of the other camp and all arrangements of cells in it, each equally likely, as
`random_maps` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from operator import or_

from collm.environments.games.gathering_maps import portions
from collm.environments.games.gathering_rules import Rules
from collm.environments.games.grid import Cell, around, distance, viewed, walk
from collm.errors import ConfigurationError

Search = tuple[Cell, ...]


class SilentBound:
    """The bound of one game, and the walks that reach it.

    Args:
        rules: Rules of a game of two agents.
        size: Size of the map.
        apart: Smallest distance of the camps.
        level: Level of the maps.
    """

    def __init__(self, rules: Rules, size: int, apart: int, level: int):
        if len(rules.tools) != 2:
            raise ConfigurationError(f"the bound is known for two agents, not for {len(rules.tools)}.")
        if 3 * rules.vision > rules.steps + rules.reach:
            raise ConfigurationError(
                f"the bound needs agents that reach whatever they see: 3 * vision ({rules.vision}) is more than steps "
                f"({rules.steps}) + reach ({rules.reach})."
            )
        self.rules, self.size, self.apart = rules, size, apart
        span = range(rules.vision, size - rules.vision)
        self.camps = [(x, y) for x in span for y in span]
        self.inside = frozenset((x, y) for x in range(size) for y in range(size))
        self.filled = [sum(len(portions(rules.goals[k], level)) for k in kinds) for kinds in rules.tools.values()]
        offsets = [offset for offset in around((0, 0), rules.vision) if offset != (0, 0)]
        self.layouts = [
            [
                (own, (*own, *rest))
                for own in combinations(offsets, count)
                for rest in combinations([offset for offset in offsets if offset not in own], level - 1)
            ]
            for count in self.filled
        ]
        self._known: dict[tuple[int, Cell], tuple[float, Search]] = {}

    def value(self) -> float:
        """The largest probability of success of a team without messages is at most this."""
        return min(self._mean(index) for index in range(2))

    def _mean(self, index: int) -> float:
        """The largest probability that agent `index` succeeds, over all starts."""
        found = total = 0.0
        half = (self.size - 1) / 2
        for start in self.camps:
            others = sum(distance(start, camp) >= self.apart for camp in self.camps)
            folded = sorted(abs(value - half) for value in start)  # starts that mirror each other are worth the same
            mirror = (int(half - folded[1]), int(half - folded[0]))
            found += others * self.best(index, mirror)[0] if others else 0.0
            total += others
        return found / total

    def best(self, index: int, start: Cell) -> tuple[float, Search]:
        """The largest probability of success of agent `index` from `start`, and the walk that has it, turn by turn."""
        key = (self.filled[index], start)
        if key not in self._known:
            self._known[key] = self._search(index, start)
        return self._known[key]

    def _search(self, index: int, start: Cell) -> tuple[float, Search]:
        rules, layouts = self.rules, self.layouts[index]
        turns = -(-self.filled[index] // rules.max_takes)
        camps = [camp for camp in self.camps if distance(start, camp) >= self.apart]
        # one bit for each place of the camp and arrangement in it
        seen, holds = dict.fromkeys(self.inside, 0), dict.fromkeys(self.inside, 0)
        for number, (camp, (own, filled)) in enumerate((camp, layout) for camp in camps for layout in layouts):
            for x, y in own:
                holds[camp[0] + x, camp[1] + y] |= 1 << number
            for cell in viewed([(camp[0] + x, camp[1] + y) for x, y in filled], rules.vision, self.size, self.size):
                seen[cell] |= 1 << number
        walks: dict[tuple[Cell, int], Search] = {(start, 0): ()}
        for _ in range(rules.horizon - turns):
            further: dict[tuple[Cell, int], Search] = {}
            for (place, found), search in walks.items():
                for goal in self._within(place, rules.steps):
                    mask = reduce(or_, (seen[cell] for cell in walk(place, goal, rules.steps)), found)
                    further.setdefault((goal, mask), (*search, goal))
            walks = further
        lucky = self.filled[index] - rules.max_takes * (turns - 1)  # cells that must be taken unseen
        most = -1
        best: Search = ()
        ranked = sorted(((found.bit_count(), place, found) for place, found in walks), reverse=True)
        highest = max(map(int.bit_count, holds.values()))
        for count, place, found in ranked:
            if count + highest <= most:
                break
            for goal in self._within(place, rules.steps):
                guess = self._guess(goal, found, holds, lucky)
                if count + guess > most:
                    most, best = count + guess, (*walks[place, found], goal)
        return most / (len(camps) * len(layouts)), best

    def _within(self, place: Cell, steps: int) -> Sequence[Cell]:
        return [cell for cell in around(place, steps) if cell in self.inside]

    def _guess(self, place: Cell, found: int, holds: dict[Cell, int], lucky: int) -> int:
        """In how many of the cases that are not found the best takes from `place` hit at least `lucky` cells."""
        reached = [holds[cell] & ~found for cell in around(place, self.rules.reach) if cell in self.inside]
        most = 0
        for chosen in combinations(reached, self.rules.max_takes):
            hits = (reduce(int.__and__, some) for some in combinations(chosen, lucky))
            most = max(most, reduce(or_, hits, 0).bit_count())
        return most
