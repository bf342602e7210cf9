"""The toy game with its state told to critics."""

from __future__ import annotations

from typing import Any

from toy import Toy


class DescribedToy(Toy):
    """Tells which task it is and how many turns were played."""

    def state_features(self, state: Any) -> dict[str, float]:
        task, turn = state
        return {"task": task.data["index"], "turn": turn}

    def state_text(self, state: Any) -> str:
        return f"task {state[0].data['index']} turn {state[1]}"

    def progress(self, state: Any) -> float:
        return state[1] / self.horizon
