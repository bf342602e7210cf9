"""The reward function of configs/experiments/reward_function_tiny.yaml, an example for your own."""

from __future__ import annotations

import re
from typing import Any

POST = re.compile(r"/setblock (\d) (\d) 0 \w+")


def fence(fields: dict[str, Any], texts: dict[str, str]) -> dict[str, float]:
    """Pay a team for setting every post of a fence once: no post twice, and none elsewhere.

    Args:
        fields: The row; its `posts` are the cells [x, y] of the fence.
        texts: The response of each agent: lines such as `/setblock 1 2 0 oak_planks`.

    Returns:
        `covered`, the share of posts that are set, minus `doubled`, the share that several agents set, and minus
        `astray`, the number of cells set elsewhere out of the number of posts, at most 1. The sum is in [-1, 1].
    """
    posts = {tuple(post) for post in fields["posts"]}
    cells = [{(int(x), int(y)) for x, y in POST.findall(text)} for text in texts.values()]
    together = set().union(*cells)
    doubled = sum(sum(post in own for own in cells) > 1 for post in posts)
    return {
        "covered": len(posts & together) / len(posts),
        "doubled": -doubled / len(posts),
        "astray": -min(1.0, len(together - posts) / len(posts)),
    }
