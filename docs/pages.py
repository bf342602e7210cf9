"""What mkdocs calls while it builds the site: pages of the navigation that are not written yet are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> None:
    """Drop entries of `nav` without a file."""
    config.nav = [entry for entry in map(_present, config.nav, [Path(config.docs_dir)] * len(config.nav)) if entry]


def _present(entry: Any, folder: Path) -> Any:
    if isinstance(entry, str):
        return entry if (folder / entry).is_file() else None
    ((title, pages),) = entry.items()
    if isinstance(pages, str):
        return entry if (folder / pages).is_file() else None
    kept = [one for one in (_present(page, folder) for page in pages) if one]
    return {title: kept} if kept else None
