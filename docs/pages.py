"""What mkdocs calls while it builds the site: pages that are not written are left out, files outside are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def on_config(config: Any) -> None:
    """Drop entries of `nav` without a file."""
    config.nav = [entry for entry in (_present(one, Path(config.docs_dir)) for one in config.nav) if entry]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files of the repository that are no pages of the site, in place of links to them."""
    return re.sub(r"(?<!!)\[([^\]]*)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)


def _present(entry: Any, folder: Path) -> Any:
    if isinstance(entry, str):
        return entry if (folder / entry).is_file() else None
    ((title, pages),) = entry.items()
    if isinstance(pages, str):
        return entry if (folder / pages).is_file() else None
    kept = [one for one in (_present(page, folder) for page in pages) if one]
    return {title: kept} if kept else None
