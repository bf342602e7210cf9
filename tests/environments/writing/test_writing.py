import json
import random
import time
from pathlib import Path

import pytest

from collm.environments.writing.arxiv import ArXiv
from collm.environments.writing.base import MARKER, split_paragraphs
from collm.environments.writing.pair_score import Band, logarithmic, measure, score_pair, stepwise
from collm.environments.writing.tldr import TLDR
from collm.environments.writing.words import TRANSITIONS, content_words, jaccard, transition_categories, vocabulary
from collm.trajectory import Action, Trajectory, Turn

FORMS = {"tldr": TLDR.forms, "arxiv": ArXiv.forms}
VECTORS = [
    json.loads(line) for line in (Path(__file__).parent / "writing_vectors.jsonl").read_text("utf-8").splitlines()
]
GARBAGE = [
    "",
    " \n\t\u2028\u00a0",
    "a" * 100_000,
    " " * 100_000,
    "so " * 33_000,
    "as as as a " * 9_000,
    "paragraph " * 10_000 + "2",
    "Paragraph 2:" * 8_000,
    MARKER * 5_000,
    "İİİß ﬁ " * 100,
    "机器学习是人工智能的一个分支" * 50,
    "كان يا ما كان في قديم الزمان",
    "🧶🐝" * 500,
    "\x00\x1b[31m\ufffd\ud800",
    "’'’'’'",
    "nan inf -1 1e309",
]


def words(count: int, stem: str = "w", length: int = 4) -> str:
    """`count` different invented words of `length` letters, none of which is a transition phrase."""
    digits = length - len(stem)
    return " ".join(f"{stem}{number:0{digits}d}" for number in range(count))


# Words


def test_vocabulary_counts_distinct_words_of_any_script():
    assert vocabulary("The dog, the DOG and_1 Ärger! 機械 x") == {"the", "dog", "and_1", "ärger", "機械", "x"}
    assert content_words("The dog and the cat don't") == {"dog", "cat"}


def test_jaccard():
    # {a, b, c} and {b, c, d}: 2 shared of 4
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 0.5
    assert jaccard(frozenset(), frozenset()) == 0.0
    assert jaccard(frozenset(), frozenset(), empty=1.0) == 1.0


def test_there_are_twelve_categories_with_own_phrases():
    assert len(TRANSITIONS) == 12
    phrases = [phrase for category in TRANSITIONS.values() for phrase in category]
    assert len(phrases) == len(set(phrases))
    assert all(phrase == phrase.lower().strip() for phrase in phrases)


@pytest.mark.parametrize("category", TRANSITIONS)
def test_every_phrase_is_found(category):
    for phrase in TRANSITIONS[category]:
        assert category in transition_categories(f"We came, {phrase.upper()}, home.")


@pytest.mark.parametrize(
    "text", ["Some classes have a button.", "A specific yeti thensome.", "nowhere, soon2 sofas", "first_name", "e.gg"]
)
def test_phrases_inside_words_do_not_count(text):
    assert transition_categories(text) == []


def test_phrases_anywhere_count_under_the_released_rules():
    # "so" in some, "but" in button
    assert transition_categories("some button", whole_words=False) == ["cause", "contrast"]


def test_phrases_may_break_over_lines_and_use_a_typographic_apostrophe():
    assert transition_categories("in \n  other\twords") == ["clarification"]
    assert transition_categories("What\u2019s more") == ["addition"]
    assert transition_categories("fruit, e.g. plums") == ["example"]


# Credit


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.09, None),
        (1.1, 0.0),
        (1.35, 0.5),  # (1.35 - 1.1) / 0.5
        (1.6, 1.0),
        (3.2, 1.0),
        (4.1, 0.5),  # 1 - (4.1 - 3.2) / 1.8
        (5.0, 0.0),
        (5.01, None),
    ],
)
def test_band(value, expected):
    credit = Band(1.1, 1.6, 3.2, 5.0).credit(value)
    assert credit == (None if expected is None else pytest.approx(expected))


def test_band_without_upper_end():
    assert Band(1.3, 2.0).credit(1e9) == 1.0
    assert Band(1.3, 2.0).credit(1.65) == pytest.approx(0.5)  # 0.35 / 0.7


def test_transition_scores():
    # 0.6 ln 2 = 0.4159, 0.6 ln 5 = 0.9657, 0.6 ln 6 = 1.0751; 0.4 ln 2 = 0.2773, 0.4 ln 12 = 0.9940, 0.4 ln 13 = 1.026
    assert [logarithmic(0.6)(count) for count in (0, 1, 4, 5)] == pytest.approx([0.0, 0.4159, 0.9657, 1.0], abs=1e-4)
    assert [logarithmic(0.4)(count) for count in (1, 11, 12)] == pytest.approx([0.2773, 0.9940, 1.0], abs=1e-4)
    assert [stepwise(count) for count in (0, 1, 2, 12)] == pytest.approx([0.0, 0.4, 0.45, 0.95])


def test_maximum_of_each_form():
    assert {(name, key): form.maximum for name, forms in FORMS.items() for key, form in forms.items()} == {
        ("tldr", "paper"): 3.0,
        ("tldr", "released"): pytest.approx(2.98),  # 0.5 + 1 + 0.5 + 0.4 * 0.95 + 0.6
        ("arxiv", "paper"): 3.0,
        ("arxiv", "released"): pytest.approx(2.98),
    }


# The reward by hand


def test_tldr_by_hand():
    # 20 words of 4 letters and 41 words of 4: length 164 / 80 = 2.05, full credit. Distinct words: "also" and 40 more,
    # 41 / 20, full credit. One category: 0.4 * 0.6 ln 2 = 0.1664. All of the first text is shared, 20 / 40 content
    # words, far above the cap.
    score = score_pair(TLDR.forms["paper"], words(20), words(40) + " also")
    assert score.terms == pytest.approx(
        {"structure": 0.5, "length_ratio": 1, "vocabulary": 0.5, "style_transitions": 0.1664, "style_jaccard": 0.6},
        abs=1e-4,
    )
    assert score.total == pytest.approx(2.7664, abs=1e-4)
    assert score.maximum == 3.0


def test_tldr_partial_credit_by_hand():
    # 20 words of 5 letters, 30 other words of 5: length 150 / 100 = 1.5, credit (1.5 - 1.1) / 0.5 = 0.8.
    # Vocabulary 1.5, credit (1.5 - 1.3) / 0.7 = 0.2857, term 0.1429. No transition, nothing shared.
    score = score_pair(TLDR.forms["paper"], words(20, "a", 5), words(30, "b", 5))
    assert score.terms == pytest.approx(
        {"structure": 0.5, "length_ratio": 0.8, "vocabulary": 0.5 / 3.5, "style_transitions": 0, "style_jaccard": 0}
    )


def test_similarity_below_the_cap_by_hand():
    # 40 and 80 words share 2: J = 2 / 118 = 0.01695, term 0.6 * 0.01695 / 0.03 = 0.3390
    score = score_pair(TLDR.forms["paper"], words(40, "a", 5), f"a0000 a0001 {words(78, 'b', 5)}")
    assert score.terms["style_jaccard"] == pytest.approx(0.6 * (2 / 118) / 0.03)


@pytest.mark.parametrize(("count", "fits"), [(7, False), (8, True), (128, True)])
def test_tldr_first_level(count, fits):
    score = score_pair(TLDR.forms["paper"], words(count, "a", 5), words(2 * count, "b", 5))
    assert (score.total > 0) == fits


def test_too_long_a_text_closes_everything():
    assert score_pair(TLDR.forms["paper"], words(128), words(256)).total > 2
    assert score_pair(TLDR.forms["paper"], words(128), words(257)).total == 0


def test_length_out_of_range_keeps_the_first_level_only():
    score = score_pair(TLDR.forms["paper"], words(10), words(51))  # 5.1
    assert score.total == 0.5
    assert score_pair(TLDR.forms["paper"], words(10), words(50)).terms["vocabulary"] == 0.5  # 5.0 is in range, worth 0


def test_vocabulary_at_the_edge_of_its_range_opens_the_last_level():
    # 26 / 20 = 1.3 exactly: nothing for the vocabulary, yet similarity 20 / 26 counts in full
    terms = score_pair(TLDR.forms["paper"], words(20), words(26)).terms
    assert terms["vocabulary"] == 0.0
    assert terms["style_jaccard"] == 0.6
    # 25 / 20 = 1.25 is out of range. The length stays in range, 26 words to 20.
    terms = score_pair(TLDR.forms["paper"], words(20), words(25) + " w000").terms
    assert terms["length_ratio"] > 0
    assert terms["style_jaccard"] == 0.0


def test_padding_is_worth_nothing_in_the_paper_form():
    first, second = words(20), words(20)
    padded = second.replace(" ", "     ")
    assert score_pair(TLDR.forms["paper"], first, padded) == score_pair(TLDR.forms["paper"], first, second)
    assert score_pair(TLDR.forms["released"], first, padded).terms["length_ratio"] > 0


def test_texts_of_stopwords_share_nothing_in_the_paper_form():
    first, second = "it was what it was and so on", "this is the one of which we were told by them when they came here"
    assert measure(TLDR.forms["paper"], "it is", "we are").jaccard == 0.0
    assert measure(TLDR.forms["released"], "it is", "we are").jaccard == 1.0
    assert content_words(first) == frozenset()
    assert content_words(second) == {"told", "came"}


def test_transitions_of_the_first_text_count_for_arxiv_only():
    first, second = "however " + words(9), words(20)
    assert measure(TLDR.forms["paper"], first, second).transition_categories == 0
    assert measure(ArXiv.forms["paper"], first, second).transition_categories == 1


def test_a_phrase_does_not_arise_where_two_texts_meet():
    # "bec" + "ause": the released rules join without a blank and find "because"
    assert measure(ArXiv.forms["paper"], "zzz bec", "ause zzz").transition_categories == 0
    assert measure(ArXiv.forms["released"], "zzz bec", "ause zzz").transition_categories == 1


@pytest.mark.parametrize(
    ("count", "paper", "released"),
    [
        # Words of the second text for 130 of the first, all of 5 letters. Length by the paper: full from 1.0 to 1.3,
        # partial from 0.8 to 1.5. Released, with blanks (6n - 1): full from 1.3 to 1.6, partial from 0.8 to 2.0.
        (130, 1.0, (779 / 779 - 0.8) / 0.5),
        (169, 1.0, (1013 / 779 - 0.8) / 0.5),  # 1013 / 779 = 1.30039 is just inside the full range
        (182, 0.5, 1.0),  # 1.4: 1 - 0.1 / 0.2; 1091 / 779 = 1.4005
        (200, None, 1.0),  # 1.538 is out of range; 1199 / 779 = 1.539
        (234, None, 1 - (1403 / 779 - 1.6) / 0.4),  # 1.801
    ],
)
def test_arxiv_length(count, paper, released):
    first, second = words(130, "a", 5), words(count, "b", 5)
    terms = score_pair(ArXiv.forms["paper"], first, second).terms
    assert terms["length_ratio"] == pytest.approx(paper or 0.0)
    terms = score_pair(ArXiv.forms["released"], first, second).terms
    assert terms["length_ratio"] == pytest.approx(min(1.0, released))


def test_arxiv_vocabulary_ranges():
    band = ArXiv.forms["paper"].vocabulary
    # 0.6 is halfway up, 1.5 halfway down
    credits = [band.credit(value) for value in (0.49, 0.5, 0.6, 0.7, 1.3, 1.5, 1.7, 1.71)]
    assert credits == [None, 0.0, pytest.approx(0.5), 1.0, 1.0, pytest.approx(0.5), pytest.approx(0.0), None]


def test_arxiv_needs_128_words():
    assert score_pair(ArXiv.forms["paper"], words(127), words(140)).total == 0
    assert score_pair(ArXiv.forms["paper"], words(128), words(140)).total > 2


# Agreement with the authors' released code


@pytest.mark.parametrize("row", VECTORS, ids=[f"{row['environment']}: {row['note']}" for row in VECTORS])
def test_released_rules(row):
    """All but the phrases, whose list is our own: with as many categories as theirs finds, the totals are equal."""
    score = score_pair(FORMS[row["environment"]]["released"], row["first"], row["second"])
    others = score.total - score.terms["style_transitions"]
    assert others + 0.4 * stepwise(row["categories"]) == pytest.approx(row["released"], abs=1e-6)
    if "response" in row:
        assert split_paragraphs(row["response"]) == (row["first"], row["second"])


# One response with both paragraphs


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (f"one two {MARKER} three", ("one two", "three")),
        (f"Paragraph 1: one\n{MARKER}\nPARAGRAPH 2:  two", ("one", "two")),
        (f"one {MARKER} two {MARKER} three", ("one", f"two {MARKER} three")),
        ("Paragraph 1: one\n\nparagraph 2:\n two", ("one", "two")),
        # The marker goes before the label.
        (f"a Paragraph 2: b {MARKER} c", ("a Paragraph 2: b", "c")),
        ("abcdefgh", ("ab", "cdefgh")),  # 8 // 3 = 2
        ("ab", ("a", "b")),
        ("a", ("a", "")),
        ("  \n", ("", "")),
    ],
)
def test_split_paragraphs(response, expected):
    assert split_paragraphs(response) == expected


# Any text


@pytest.mark.parametrize("environment", [TLDR, ArXiv])
@pytest.mark.parametrize("reward", ["paper", "released"])
@pytest.mark.parametrize("single_agent", [False, True])
def test_any_text_is_rewarded_quickly(environment, reward, single_agent):
    played = environment(reward=reward, single_agent=single_agent)
    task = played.tasks("train")[0]
    state, _ = played.reset(task, random.Random(0))
    for number, text in enumerate(GARBAGE):
        other = GARBAGE[(number + 7) % len(GARBAGE)]
        actions = dict(zip(played.agent_ids, (text, other), strict=False))
        began = time.perf_counter()
        step = played.step(state, actions)
        assert time.perf_counter() - began < 2
        assert played.min_reward <= step.reward <= played.max_reward
        turn = Turn({}, {key: Action(value) for key, value in actions.items()}, step.reward, step.terms)
        metrics = played.metrics(Trajectory(task, 0, 1, played.max_reward, [turn]))
        assert all(value == value and abs(value) != float("inf") for value in metrics.values())


def test_random_words_stay_in_range():
    rng = random.Random(0)
    pool = [phrase for category in TRANSITIONS.values() for phrase in category] + words(40).split() + ["the", "of"]
    for _ in range(300):
        first, second = (" ".join(rng.choices(pool, k=rng.randint(0, 260))) for _ in range(2))
        for forms in FORMS.values():
            for form in forms.values():
                score = score_pair(form, first, second)
                assert 0 <= score.total <= score.maximum
                assert score.total == sum(score.terms.values())
                assert all(term >= 0 for term in score.terms.values())
