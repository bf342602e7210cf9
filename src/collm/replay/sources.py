"""Which transcripts a page shows: those of runs, of comparisons, or single files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collm.errors import ConfigurationError

_STEP = re.compile(r"([a-z]+)-(\d+)")


@dataclass(frozen=True)
class Source:
    """A transcript file.

    Args:
        path: The file.
        label: Name of its method or run.
        kind: `validate`, `test`, `predict`, or the name of the file.
        step: Joint samples that the agents had learned from; None if the file does not say.
    """

    path: Path
    label: str
    kind: str
    step: int | None


def find_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """The transcripts of `inputs`: each a .jsonl file, the folder of a run, or that of a comparison, after `label=`.

    Raises:
        ConfigurationError: There are none.
    """
    sources = []
    for one in inputs:
        label, _, rest = str(one).partition("=")
        path = Path(rest) if rest and not Path(one).exists() else Path(one)
        name = label if rest and path != Path(one) else path.resolve().stem
        found = _of_path(path, name)
        if not found:
            raise ConfigurationError(
                f"{str(path)!r} has no transcripts; give a .jsonl file, or the folder of a run or comparison."
                if path.exists()
                else f"{str(path)!r} does not exist; give a .jsonl file or the folder of a run."
            )
        sources += found
    return sources


def has_transcripts(folder: Path) -> bool:
    """Whether the folder of a run or comparison holds any."""
    return bool(_of_path(folder, ""))


def _of_path(path: Path, label: str) -> list[Source]:
    if path.is_file():
        return [Source(path, label, *_kind(path))]
    evaluations = sorted(folder for folder in path.glob("evaluations/*") if folder.is_dir())
    if evaluations:
        return [
            source
            for folder in evaluations
            for source in _of_path(folder, re.sub(r"_\d+$", "", folder.name).replace("_", " "))
        ]
    files = [*sorted(path.glob("transcripts/*.jsonl"), key=_order), *path.glob("predictions.jsonl")]
    return [Source(file, label, *_kind(file)) for file in files]


def _kind(path: Path) -> tuple[str, int | None]:
    match = _STEP.fullmatch(path.stem)
    if match:
        return match[1], int(match[2])
    return ("predict" if path.stem == "predictions" else path.stem), None


def _order(path: Path) -> tuple[int, str]:
    step = _kind(path)[1]
    return (-1 if step is None else step), path.stem
