"""Episodes as a model would write them that wants to break out of the page."""

from __future__ import annotations

from typing import Any

ATTACKS = [
    "</script><script>document.title = 'broken'</script>",
    "<img src=x onerror=\"document.title = 'broken'\">",
    "<!--<script>",
    "{{script}} {{data}} {{style}}",
    "\u2028 \u2029 \x00 \ud800 \u202e",
    "'; document.title = 'broken'; //",
    "]]></textarea></style>",
]
SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='30' height='30'><script>document.title='broken'</script></svg>"


def episode(task: str, reward: float, text: str = "ok", turns: int = 2, **more: Any) -> dict[str, Any]:
    """A transcript of one episode with two agents; agent `main` has its second line rejected."""
    played = [
        {
            "observations": {"helper": f"turn {turn}\nsame line", "main": f"turn {turn}\nsame line\n{text}"},
            "actions": {"helper": f"say {text}", "main": f"/setblock 0 0 0 stone\n- nonsense {turn}"},
            "truncated": ["helper"] if turn else [],
            "reward": reward / turns,
            "terms": {"coverage": reward, "extra": -0.25},
            "info": {"rejected": {"main": [[f"nonsense {turn}", "unknown_command"]]}, "score": reward},
            "estimates": {"V(h)": reward / 2, "advantage": -0.1},
            "tokens": {"helper": [["say", -0.01, 2.5], [" ", -1.5, 0.0], [text, -7.0, 9.0]]},
            "picture": SVG.replace("<script>document.title='broken'</script>", ""),
        }
        for turn in range(turns)
    ]
    return {
        "task_id": task,
        "return": reward,
        "metrics": {"pass": float(reward > 1)},
        "error": None,
        "turns": played,
    } | more
