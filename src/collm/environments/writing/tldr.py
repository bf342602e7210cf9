"""TLDR: one agent summarizes a post in a line, another one in a paragraph.

The paper's rules leave some details open; `reward="paper"` fills them as follows.

- Length is counted in characters, as in the authors' released code, but without whitespace, so padding has no effect.
- The bounds of 8 and 256 words and the weights of the levels (0.5, 1.0, 0.5, and 0.4 + 0.6 for style) are those of
  the released code.
- The vocabulary includes stopwords: the paper excludes them only in the Jaccard similarity.
- The logarithm is the natural one: with the weight of arXiv, full credit then needs all twelve categories
  (0.4 ln 12 = 0.99, 0.4 ln 13 = 1.03).
- Transitions are counted in the detailed summary only, as complete words, with this project's list of phrases.
- Two summaries without content words have similarity 0.

`reward="released"` follows the released code instead: whitespace counts, phrases count inside words, two summaries
without content words have similarity 1, and transitions score 0.4 for one category and 0.05 for each further one, so
that the maximum is 2.98. Only the list of phrases is not the authors'.
"""

from __future__ import annotations

from typing import Any

from collm.environments.writing.base import MARKER, FormName, Writing
from collm.environments.writing.pair_score import Band, Form, logarithmic, stepwise

COMMON: dict[str, Any] = {
    "words": (8, 256),
    "length": Band(1.1, 1.6, 3.2, 5.0),
    "vocabulary": Band(1.3, 2.0),
    "transitions_in_both": False,
    "jaccard_cap": 0.03,
}


class TLDR(Writing):
    """Two agents summarize a post, one briefly and one in detail.

    Args:
        dataset: "samples" (48 short posts shipped with the package), a local .jsonl, .json or .csv file, a folder of
            such files or of .txt files with one post each, or a hub name such as trl-lib/tldr. Rows hold the
            post in the field `prompt`.
        num_train: Number of training posts: the first ones of the data set.
        num_eval: Number of held-out posts for evaluation: the ones that follow.
        reward: "paper" for the rules as the paper states them, "released" for those of the authors' released code.
        single_agent: One agent, `writer`, writes both summaries in one response, for single-agent baselines.
        seed: Shuffle the posts with this seed before they are split; null keeps their order.
    """

    field = "prompt"
    sample_file = "tldr_samples.jsonl"
    source_label = "Post"
    instructions = {
        "summarizer": (
            "Summarize the post below for somebody in a hurry. Say what it is about and what its author wants, in one "
            "or two plain sentences. Write only the summary."
        ),
        "elaborator": (
            "Summarize the post below for somebody who wants to understand it. In one paragraph, tell what led "
            "up to it, what happened and what its author wants. Vary your wording, and join the thoughts with "
            "transition words. Write only the summary."
        ),
    }
    single_instructions = {
        "writer": (
            "Summarize the post below twice. The first paragraph says in one or two sentences what it is about. The "
            "second one tells it again in two to three times the length, with more varied wording and with "
            f"many kinds of transition words. Separate them by a line that holds only {MARKER}. Write only the two "
            "paragraphs."
        ),
    }
    forms = {
        "paper": Form(**COMMON, transition_score=logarithmic(0.6)),
        "released": Form(**COMMON, transition_score=stepwise, released=True),
    }

    def __init__(
        self,
        dataset: str = "samples",
        num_train: int = 32,
        num_eval: int = 16,
        reward: FormName = "paper",
        single_agent: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, num_train, num_eval, reward, single_agent, seed)

    def shown(self, source: str) -> str:
        """The post without the trailing "TL;DR:" of rows in trl-lib/tldr; the instruction replaces it."""
        return source.strip().removesuffix("TL;DR:").rstrip()
