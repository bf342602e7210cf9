"""Measures of English prose: words, content words, and transition phrases.

The lists were made for this project. Rewards depend on them, so changing one changes results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

WORD = re.compile(r"\w+")
"""A run of letters, digits and underscores of any script."""

# `WORD` splits contractions at the apostrophe, so this list holds their pieces too.
STOPWORDS = frozenset(
    WORD.findall(
        """
        a an the this that these those some any each every either neither both all such same other another
        i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself
        she her hers herself it its itself they them their theirs themselves one ones
        who whom whose which what when where why how there here then
        am is are was were be been being do does did doing done have has had having
        can could may might must shall should will would ought
        and or but nor if than so as because while until although though unless whether since
        of in on at by for from to into onto with without within about above below over under between among
        through during before after against toward towards upon off out up down again further
        no not only just too very also more most much many few less least own ever never still yet once
        s t d m ll re ve don didn doesn isn aren wasn weren won wouldn couldn shouldn hasn haven hadn ain
        """
    )
)

TRANSITIONS: Mapping[str, tuple[str, ...]] = {
    "addition": (
        "also", "additionally", "furthermore", "moreover", "in addition", "as well as", "besides", "what is more",
        "what's more", "on top of that", "not only", "along with", "coupled with", "equally",
    ),
    "example": (
        "for example", "for instance", "such as", "e.g.", "to illustrate", "as an illustration", "as an example",
        "namely", "including", "a case in point", "among them", "one example",
    ),
    "clarification": (
        "in other words", "that is to say", "i.e.", "to put it another way", "put differently", "put simply",
        "to clarify", "more precisely", "to be precise", "which means", "meaning that", "this means", "or rather",
    ),
    "cause": (
        "because", "due to", "owing to", "thanks to", "therefore", "thus", "hence", "consequently", "as a result",
        "as a consequence", "accordingly", "so", "for this reason", "that is why", "leads to", "led to", "thereby",
    ),
    "contrast": (
        "but", "however", "yet", "whereas", "while", "on the other hand", "by contrast", "in contrast", "conversely",
        "instead", "on the contrary", "unlike", "rather than", "otherwise", "then again",
    ),
    "concession": (
        "although", "though", "even so", "nevertheless", "nonetheless", "despite", "in spite of", "regardless",
        "admittedly", "granted", "albeit", "notwithstanding", "still", "be that as it may",
    ),
    "comparison": (
        "similarly", "likewise", "in the same way", "in a similar way", "just as", "just like", "as with",
        "compared to", "compared with", "in comparison", "by comparison", "by the same token", "akin to",
    ),
    "sequence": (
        "first", "firstly", "second", "secondly", "third", "thirdly", "next", "then", "finally", "lastly",
        "to begin with", "in the first place", "last of all", "followed by", "in turn", "step by step",
    ),
    "time": (
        "before", "after", "afterwards", "afterward", "later", "meanwhile", "when", "until", "since then", "earlier",
        "previously", "recently", "at the same time", "in the meantime", "eventually", "soon", "now", "subsequently",
        "simultaneously", "by the time", "ever since",
    ),
    "emphasis": (
        "indeed", "in fact", "in particular", "particularly", "especially", "notably", "above all", "most of all",
        "importantly", "certainly", "clearly", "of course", "without doubt", "undoubtedly", "even more",
    ),
    "condition": (
        "if", "unless", "provided that", "providing that", "as long as", "in case", "on condition that", "whether",
        "in that case", "assuming that", "given that", "supposing", "suppose that", "in the event",
    ),
    "conclusion": (
        "in conclusion", "to conclude", "in summary", "to sum up", "in short", "in brief", "overall", "all in all",
        "on the whole", "altogether", "ultimately", "in the end", "in essence", "to summarize", "to summarise",
        "in a nutshell",
    ),
}  # fmt: skip
"""Transition phrases by category; the reward depends on the number of categories in a text."""


def any_of(phrases: Iterable[str], edge: tuple[str, str]) -> re.Pattern[str]:
    """A pattern for any of `phrases` between the two given edges; as they are literals, a search takes linear time."""
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(edge[0] + "(?:" + "|".join(map(re.escape, longest_first)) + ")" + edge[1])


# A phrase can end in a full stop, after which \b would need a letter; lookarounds do not.
WHOLE_WORD = {name: any_of(phrases, (r"(?<!\w)", r"(?!\w)")) for name, phrases in TRANSITIONS.items()}
ANYWHERE = {name: any_of(phrases, ("", "")) for name, phrases in TRANSITIONS.items()}


def num_words(text: str) -> int:
    """Number of words, separated by whitespace."""
    return len(text.split())


def vocabulary(text: str) -> frozenset[str]:
    """Distinct words in lower case."""
    return frozenset(WORD.findall(text.lower()))


def content_words(text: str) -> frozenset[str]:
    """The vocabulary without stopwords."""
    return vocabulary(text) - STOPWORDS


def jaccard(first: frozenset[str], second: frozenset[str], empty: float = 0.0) -> float:
    """Jaccard similarity of two sets; `empty` if both are empty."""
    union = len(first | second)
    return len(first & second) / union if union else empty


def transition_categories(text: str, whole_words: bool = True) -> list[str]:
    """Names of the categories of `TRANSITIONS` with a phrase in `text`.

    Args:
        text: Any text.
        whole_words: Count a phrase only between word boundaries; if false, "so" also counts inside "some".
    """
    if not whole_words:
        text = text.lower()
        return [name for name, pattern in ANYWHERE.items() if pattern.search(text)]
    plain = " ".join(text.lower().replace("\u2019", "'").split())
    return [name for name, pattern in WHOLE_WORD.items() if pattern.search(plain)]
