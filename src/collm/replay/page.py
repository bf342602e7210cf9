"""Builds the page: what it shows as JSON, and the files of `page/` that show it, in one HTML file.

Episodes hold text that models wrote, and may come from strangers. Three things keep it harmless: it stands in the page
as JSON without `<`, the script only ever adds it as text, and the page's policy lets no other script run and nothing
load. Pictures are shown as images, in which browsers run no scripts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from collm.errors import ConfigurationError
from collm.replay.episodes import read_episodes
from collm.replay.sources import Source, find_sources

MAX_BYTES = 3_000_000
_SPARE = 100_000  # for what is not an episode
_FILES = Path(__file__).parent / "page"
_SCRIPTS = ("elements.js", "episodes.js", "charts.js", "turn.js", "siblings.js", "main.js")


def write_page(inputs: Sequence[str | Path], out: str | Path, title: str = "") -> int:
    """Write the replay page of `inputs` (see `find_sources`) to `out`; returns the number of episodes in it.

    Raises:
        ConfigurationError: There are no episodes, or a file holds something else.
    """
    from collm.runtime.files import write_text  # imports torch

    document = document_of(find_sources(inputs), title or ", ".join(Path(one).resolve().name for one in inputs))
    write_text(out, html_of(document))
    return len(document["episodes"])


def document_of(sources: Sequence[Source], title: str = "", max_bytes: int = MAX_BYTES - _SPARE) -> dict[str, Any]:
    """What the page shows, as plain data of at most `max_bytes` in JSON.

    If there is more, the first episodes of each task stay, and of evaluations those after and before training first.
    """
    ranked: list[tuple[tuple[int, int, int], int, dict[str, Any]]] = []
    left_out = 0
    for index, source in enumerate(sources):
        counts: dict[str, int] = defaultdict(int)
        episodes, num_more = read_episodes(source.path)
        left_out += num_more
        for number, episode in enumerate(episodes):
            ranked.append(((counts[episode["task"]], _priority(sources, index), number), index, episode))
            counts[episode["task"]] += 1
    if not ranked:
        raise ConfigurationError(f"there are no episodes in {', '.join(str(source.path) for source in sources)}.")
    kept, size = [], 0
    for (_, _, number), index, episode in sorted(ranked, key=lambda one: one[0]):
        size += len(_json(episode).encode())
        if size > max_bytes:
            break
        kept.append((index, number, episode))
    kept.sort(key=lambda one: one[:2])
    return {
        "title": title,
        "left_out": left_out + len(ranked) - len(kept),
        "sources": [{"label": one.label, "kind": one.kind, "step": one.step} for one in sources],
        "episodes": [{"source": index, "number": number + 1, **episode} for index, number, episode in kept],
    }


def _priority(sources: Sequence[Source], index: int) -> int:
    """0 for the last file of a label, 1 for its first one, then from the last to the first."""
    own = [i for i, source in enumerate(sources) if source.label == sources[index].label]
    if index == own[-1]:
        return 0
    return 1 if index == own[0] else len(sources) - index + 1


def html_of(document: dict[str, Any]) -> str:
    """The page that shows `document`."""
    script = "".join((_FILES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": escape(document["title"]),
        "digest": digest,
        "style": (_FILES / "replay.css").read_text(encoding="utf-8"),
        "script": script,
        "data": _json(document),
    }
    template = (_FILES / "replay.html").read_text(encoding="utf-8")
    # in one pass, so that nothing in a part is taken for a place of another
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _json(document: Any) -> str:
    """JSON in which nothing can end the element that it stands in."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
