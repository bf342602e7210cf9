"""arXiv: two agents write an introduction from an abstract: one the background, the other the method.

`reward="paper"` uses the ranges of the paper: a method text of 1.0 to 1.3 times the length of the background (0.8 to
1.5 for part of the credit) with 0.7 to 1.3 times its vocabulary (0.5 to 1.7). Details that the paper leaves open are
set as in TLDR: characters without whitespace, a vocabulary with stopwords, the natural logarithm, complete words,
levels weighted 0.5, 1.0, 0.5 and 0.4 + 0.6. Both texts must have 128 to 256 words, as in the authors' released code,
and transitions are counted in both of them.

`reward="released"` follows the released code instead, whose length range is 1.3 to 1.6 (0.8 to 2.0), and which joins
the two texts without a space before it counts transitions.
"""

from __future__ import annotations

from typing import Any

from collm.environments.writing.base import MARKER, FormName, Writing
from collm.environments.writing.pair_score import Band, Form, logarithmic, stepwise

COMMON: dict[str, Any] = {
    "words": (128, 256),
    "vocabulary": Band(0.5, 0.7, 1.3, 1.7),
    "transitions_in_both": True,
    "jaccard_cap": 0.23,
}


class ArXiv(Writing):
    """Two agents expand an abstract into an introduction, one its background and one its method.

    Args:
        dataset: "samples" (24 invented abstracts shipped with the package), a local .jsonl, .json or .csv file, a
            folder of such files or of .txt files with one abstract each, or a hub name such as
            OpenMLRL/arXiv_abstract. Rows hold the abstract in the field `abstract_text`.
        num_train: Number of training abstracts: the first ones of the data set.
        num_eval: Number of held-out abstracts for evaluation: the ones that follow.
        reward: "paper" for the rules as the paper states them, "released" for those of the authors' released code.
        single_agent: One agent, `writer`, writes both texts in one response, for single-agent baselines.
        seed: Shuffle the abstracts with this seed before they are split; null keeps their order.
    """

    field = "abstract_text"
    sample_file = "arxiv_samples.jsonl"
    source_label = "Abstract"
    instructions = {
        "background": (
            "Below is the abstract of a scientific paper. Write the part of its introduction that gives the background "
            "and the motivation: what is known, what is missing and why it matters. Another author writes about the "
            "method and what follows from it, so leave these out. Write one full, connected paragraph and nothing else."
        ),
        "method": (
            "Below is the abstract of a scientific paper. Write the part of its introduction that presents the method "
            "and what follows from it: how the work proceeds, what it contributes and what its results imply. Another "
            "author writes about background and motivation, so leave these out. Write one full, connected "
            "paragraph and nothing else."
        ),
    }
    single_instructions = {
        "writer": (
            "Below is the abstract of a scientific paper. Write its introduction in two full paragraphs of about the "
            "same length and richness of vocabulary: the first on background and motivation, the second on method, "
            f"contribution and implications. Separate them by a line that holds only {MARKER}. Write only the two "
            "paragraphs."
        ),
    }
    forms = {
        "paper": Form(**COMMON, length=Band(0.8, 1.0, 1.3, 1.5), transition_score=logarithmic(0.4)),
        "released": Form(**COMMON, length=Band(0.8, 1.3, 1.6, 2.0), transition_score=stepwise, released=True),
    }

    def __init__(
        self,
        dataset: str = "samples",
        num_train: int = 16,
        num_eval: int = 8,
        reward: FormName = "paper",
        single_agent: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, num_train, num_eval, reward, single_agent, seed)
