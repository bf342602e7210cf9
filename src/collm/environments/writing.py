"""What the writing tasks share: measures of a pair of texts, a gated reward, loading of sources and the episode.

Two agents read the same source and write one text each; the team is paid for how the two texts relate: the second
longer than the first by some factor, with a vocabulary to match, in the same key. `score_pair` is the whole reward, a
pure function of a `Form` and two texts. The source takes no part in it; how much of the wording the source knows is
reported by `Writing.metrics`, not rewarded.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from collm.environments.base import SPLITS, Environment, Step, check_tasks
from collm.errors import ConfigurationError
from collm.trajectory import Task, Trajectory

MARKER = "[PARAGRAPH_SPLIT]"
"""What a single agent writes between its two paragraphs."""

RewardName = Literal["paper", "released"]

WORD = re.compile(r"\w+")
"""A run of letters, digits and underscores of any script."""

# Letters after an apostrophe are words of their own to `WORD`, so the pieces of contractions stand here too.
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
        "in other words", "that is", "i.e.", "to put it another way", "put differently", "put simply", "to clarify",
        "more precisely", "to be precise", "which means", "meaning that", "this means", "or rather",
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
        "although", "though", "even so", "nevertheless", "nonetheless", "despite", "in spite of",
        "regardless", "admittedly", "granted", "albeit", "notwithstanding", "still", "be that as it may",
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
"""Phrases that join thoughts, by the kind of joint; a text is measured by how many kinds it uses."""


def any_of(phrases: Iterable[str], edge: tuple[str, str]) -> re.Pattern[str]:
    """A pattern for any of `phrases` between the two given edges. Literals only, so a search is linear in the text."""
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(edge[0] + "(?:" + "|".join(map(re.escape, longest_first)) + ")" + edge[1])


# A phrase may end in a full stop, where \b would ask for a letter to follow; looking around does not.
WHOLE_WORD = {name: any_of(phrases, (r"(?<!\w)", r"(?!\w)")) for name, phrases in TRANSITIONS.items()}
ANYWHERE = {name: any_of(phrases, ("", "")) for name, phrases in TRANSITIONS.items()}
LABEL = re.compile(r"paragraph\s*[12]\s*:\s*", re.IGNORECASE)
SECOND_LABEL = re.compile(r"paragraph\s*2\s*:\s*", re.IGNORECASE)


def num_words(text: str) -> int:
    """Pieces between blanks."""
    return len(text.split())


def vocabulary(text: str) -> frozenset[str]:
    """Distinct words in lower case."""
    return frozenset(WORD.findall(text.lower()))


def content_words(text: str) -> frozenset[str]:
    """The vocabulary without stopwords."""
    return vocabulary(text) - STOPWORDS


def ratio(part: float, whole: float) -> float:
    """`part / whole`, 0 where there is nothing to divide by."""
    return part / whole if whole else 0.0


def jaccard(first: frozenset[str], second: frozenset[str], empty: float = 0.0) -> float:
    """Shared over all elements of two sets; `empty` when both are."""
    union = len(first | second)
    return len(first & second) / union if union else empty


def transition_categories(text: str, whole_words: bool = True) -> list[str]:
    """Names of the categories of `TRANSITIONS` with a phrase in `text`.

    Args:
        text: Any text.
        whole_words: Whether a phrase must stand between word boundaries, or "so" also counts inside "some".
    """
    if not whole_words:
        return [name for name, pattern in ANYWHERE.items() if pattern.search(text.lower())]
    plain = " ".join(text.lower().replace("\u2019", "'").split())
    return [name for name, pattern in WHOLE_WORD.items() if pattern.search(plain)]


@dataclass(frozen=True)
class Band:
    """Where a ratio earns credit: all of it in the middle, a linear share of it on the way there.

    Args:
        low: Smallest ratio in range, worth 0 (1 if it equals `full_low`).
        full_low: From here on full credit.
        full_high: Up to here full credit.
        high: Largest ratio in range, worth 0 (1 if it equals `full_high`).
    """

    low: float
    full_low: float
    full_high: float = math.inf
    high: float = math.inf

    def credit(self, value: float) -> float | None:
        """Credit between 0 and 1, or None out of range: 0 in range does not stop the reward, None does."""
        if not self.low <= value <= self.high:
            return None
        if value < self.full_low:
            return (value - self.low) / (self.full_low - self.low)
        if value > self.full_high:
            return 1 - (value - self.full_high) / (self.high - self.full_high)
        return 1.0


def logarithmic(weight: float) -> Callable[[int], float]:
    """Transition score of the paper: min(1, weight * ln(categories + 1))."""
    return lambda categories: min(1.0, weight * math.log(categories + 1))


def stepwise(categories: int) -> float:
    """Transition score of the authors' released code: 0.4 for one category and 0.05 for each further one."""
    return min(1.0, 0.4 + min(0.6, 0.05 * (categories - 1))) if categories else 0.0


@dataclass(frozen=True)
class Form:
    """Every choice that a writing reward makes.

    Args:
        words: Smallest and largest number of words of either text.
        length: Second length over first length, in characters.
        vocabulary: Second number of distinct words over first.
        transition_score: Score between 0 and 1 of a number of transition categories.
        transitions_in_both: Whether transitions are looked for in both texts or in the second alone.
        jaccard_cap: Jaccard similarity of content words that earns full credit.
        released: Measure as the authors' released code does: blanks count as characters, transition phrases count
            inside words, and two texts without content words are perfectly similar.
    """

    words: tuple[int, int]
    length: Band
    vocabulary: Band
    transition_score: Callable[[int], float]
    transitions_in_both: bool
    jaccard_cap: float
    released: bool = False

    @property
    def maximum(self) -> float:
        """Largest reward that two texts can earn."""
        return 0.5 + 1.0 + 0.5 + 0.4 * self.transition_score(len(TRANSITIONS)) + 0.6


class Measures(NamedTuple):
    """What the reward looks at in a pair of texts."""

    words: tuple[int, int]
    length_ratio: float
    vocabulary_ratio: float
    transition_categories: int
    jaccard: float


class PairScore(NamedTuple):
    """A reward term by term, their sum, and the largest sum there is."""

    terms: dict[str, float]
    total: float
    maximum: float


def measure(form: Form, first: str, second: str) -> Measures:
    """Measure two texts the way `form` counts."""
    if form.released:
        lengths = len(first), len(second)
    else:
        # Blanks are free to write; counted, they would let padding steer the ratio.
        lengths = sum(map(len, first.split())), sum(map(len, second.split()))
    vocabularies = vocabulary(first), vocabulary(second)
    style_text = second
    if form.transitions_in_both:
        style_text = first + ("" if form.released else "\n") + second
    return Measures(
        words=(num_words(first), num_words(second)),
        length_ratio=ratio(lengths[1], lengths[0]),
        vocabulary_ratio=ratio(len(vocabularies[1]), len(vocabularies[0])),
        transition_categories=len(transition_categories(style_text, whole_words=not form.released)),
        jaccard=jaccard(vocabularies[0] - STOPWORDS, vocabularies[1] - STOPWORDS, empty=float(form.released)),
    )


def score_pair(form: Form, first: str, second: str) -> PairScore:
    """Reward two texts level by level: size, length ratio, vocabulary ratio, style.

    A level whose quantity is out of range earns nothing and closes the levels after it; what was earned stays. The
    range decides, not the credit: a ratio at the edge of its range earns 0 and the next level is still open.
    """
    measures = measure(form, first, second)
    terms = dict.fromkeys(("structure", "length_ratio", "vocabulary", "style_transitions", "style_jaccard"), 0.0)

    def finish() -> PairScore:
        return PairScore(terms, sum(terms.values()), form.maximum)

    if not all(form.words[0] <= words <= form.words[1] for words in measures.words):
        return finish()
    terms["structure"] = 0.5
    length_credit = form.length.credit(measures.length_ratio)
    if length_credit is None:
        return finish()
    terms["length_ratio"] = length_credit
    vocabulary_credit = form.vocabulary.credit(measures.vocabulary_ratio)
    if vocabulary_credit is None:
        return finish()
    terms["vocabulary"] = 0.5 * vocabulary_credit
    terms["style_transitions"] = 0.4 * form.transition_score(measures.transition_categories)
    terms["style_jaccard"] = 0.6 * min(1.0, measures.jaccard / form.jaccard_cap)
    return finish()


def split_paragraphs(response: str) -> tuple[str, str]:
    """The two paragraphs of a single agent's response.

    The marker divides them; where it is missing, a label "Paragraph 2:" does, and where that is missing too the
    first third of the characters is the first paragraph. Labels at the head of either paragraph are dropped.
    """
    text = response.strip()
    if MARKER in text:
        first, _, second = text.partition(MARKER)
    elif label := SECOND_LABEL.search(text):
        first, second = text[: label.start()], text[label.end() :]
    else:
        cut = max(1, len(text) // 3)
        first, second = text[:cut], text[cut:]
    return without_label(first), without_label(second)


def without_label(paragraph: str) -> str:
    """`paragraph` without outer blanks and without a leading "Paragraph 1:" or "Paragraph 2:"."""
    paragraph = paragraph.strip()
    label = LABEL.match(paragraph)
    return paragraph[label.end() :].strip() if label else paragraph


class Source(NamedTuple):
    """A text to write about and where it came from, as messages name it."""

    task_id: str
    location: str
    text: str


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*")  # "org/set-v1.5" is a name, "data/set.jsonl" a file
ROW_SUFFIXES = (".jsonl", ".json", ".csv")


def load_sources(dataset: str, field: str, sample_file: str) -> Sequence[Source]:
    """The sources that `dataset` names: shipped samples, a local file or folder, or a data set of the hub.

    Args:
        dataset: "samples", a path, or a hub name.
        field: Field of a row that holds the text.
        sample_file: File of shipped samples, in the package's assets.
    """
    if not isinstance(dataset, str) or not dataset.strip():
        raise ConfigurationError(f"dataset {dataset!r}: give 'samples', a path or a hub name like owner/name.")
    if dataset == "samples":
        return local_sources(Path(str(resources.files("collm") / "assets" / sample_file)), field)
    path = Path(dataset).expanduser()
    if path.exists():
        return local_sources(path, field)
    if HUB_NAME.fullmatch(dataset) and not FILE_SUFFIX.fullmatch(path.suffix):
        return HubSources(dataset, field)
    raise ConfigurationError(
        f"dataset {dataset!r}: there is no such file or folder (looked in {Path.cwd()}), and it is no hub name either; "
        "give 'samples', an existing path, or a hub name like owner/name."
    )


def local_sources(path: Path, field: str) -> list[Source]:
    """All sources of a file or folder; refuses one that is there twice."""
    sources = list(read_folder(path, field) if path.is_dir() else read_file(path, field))
    if not sources:
        raise ConfigurationError(f"{path} holds no rows; write one row with the field {field!r} per source.")
    seen: dict[str, str] = {}
    for source in sources:
        key = " ".join(source.text.split())
        if key in seen:
            raise ConfigurationError(
                f"{source.location} repeats {seen[key]}; remove one of them, or the same text could be trained on "
                "and evaluated."
            )
        seen[key] = source.location
    return sources


def read_folder(path: Path, field: str) -> Iterator[Source]:
    """Sources of the row files in a folder, and its .txt files as one source each, in order of their names."""
    files = sorted((entry for entry in path.iterdir() if entry.is_file()), key=lambda entry: entry.name)
    readable = [file for file in files if file.suffix in (*ROW_SUFFIXES, ".txt")]
    if not readable:
        found = ", ".join(file.name for file in files[:5]) or "no files"
        raise ConfigurationError(
            f"folder {path} has no .jsonl, .json, .csv or .txt file (found: {found}); convert what is there, for "
            "example with the to_json method of the package datasets."
        )
    for file in readable:
        if file.suffix == ".txt":
            yield checked(file, file.name, "", {field: read_text(file)}, field)
        else:
            yield from read_file(file, field)


def read_file(path: Path, field: str) -> Iterator[Source]:
    """Sources of a .jsonl file (an object per line), a .json file (a list of objects) or a .csv file with a header."""
    suffix = path.suffix
    if suffix not in ROW_SUFFIXES:
        raise ConfigurationError(
            f"{path}: cannot read a {suffix or 'suffixless'} file as rows; give .jsonl, .json or .csv, or a folder "
            "with one .txt file per source."
        )
    text = read_text(path)
    if not text.strip():
        raise ConfigurationError(f"{path} is empty; write one row with the field {field!r} per source.")
    rows = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows}[suffix](path, text, field)
    for place, row in rows:
        yield checked(path, f"{path.name}:{place.split()[-1]}", place, row, field)


def read_text(path: Path) -> str:
    """The text of a file, which must be UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); give a readable file in UTF-8.") from error


def jsonl_rows(path: Path, text: str, field: str) -> Iterator[tuple[str, Any]]:
    """Line number and value of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigurationError(
                f'{path} line {number} is not JSON ({error.msg}); write one object like {{"{field}": "..."}} per line.'
            ) from error


def json_rows(path: Path, text: str, field: str) -> Iterator[tuple[str, Any]]:
    """Position and value of each entry of the list."""
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path} line {error.lineno} is not JSON ({error.msg}); a .json file holds one list of objects, a .jsonl "
            "file one object per line."
        ) from error
    if not isinstance(rows, list):
        raise ConfigurationError(f"{path} line 1: expected a list of objects with the field {field!r}.")
    for number, row in enumerate(rows, start=1):
        yield f"entry {number}", row


def csv_rows(path: Path, text: str, field: str) -> Iterator[tuple[str, Any]]:
    """Line number (where the row ends) and fields of each row below the header."""
    reader = csv.DictReader(io.StringIO(text))
    try:
        if field not in (reader.fieldnames or ()):
            raise ConfigurationError(
                f"{path} line 1: the header has no column {field!r} (it has {reader.fieldnames}); rename the column "
                "that holds the text."
            )
        for row in reader:
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise ConfigurationError(f"{path} line {reader.line_num}: {error}; mend the row.") from error


def checked(path: Path, task_id: str, place: str, row: Any, field: str) -> Source:
    """The source of a row, which must be an object with text in `field`."""
    location = f"{path} {place}".strip()
    if not isinstance(row, dict):
        raise ConfigurationError(f'{location}: expected an object like {{"{field}": "..."}}, got {type(row).__name__}.')
    if field not in row:
        raise ConfigurationError(f"{location}: no field {field!r} (it has {sorted(map(str, row))}); add or rename it.")
    text = row[field]
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(f"{location}: the field {field!r} must be text that is not blank, got {text!r:.60}.")
    return Source(task_id, location, text)


class HubSources(Sequence[Source]):
    """Rows of the train split of a hub data set, read when they are asked for.

    Args:
        name: Hub name, owner/name.
        field: Column that holds the text.
    """

    def __init__(self, name: str, field: str) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ConfigurationError(
                f"dataset {name!r} looks like a hub name, and reading one needs an extra package: "
                "pip install collm[hub]. Or give a local file, or 'samples'."
            ) from error
        try:
            self.rows = datasets.load_dataset(name, split="train")
        # The hub client has no common error: no network, no such name and a broken cache are all of different types.
        except Exception as error:
            raise ConfigurationError(
                f"dataset {name!r} could not be loaded from the hub ({type(error).__name__}: {error}). Without a "
                f"network, run load_dataset({name!r}, split='train').to_json('train.jsonl') where there is one, "
                "bring the file here and give its path or that of its folder."
            ) from error
        if field not in self.rows.column_names:
            raise ConfigurationError(
                f"dataset {name!r} has no column {field!r} (it has {self.rows.column_names}); choose another one."
            )
        self.name = name
        self.field = field

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Source:
        text = self.rows[index][self.field]
        return Source(f"{self.name}:{index}", f"{self.name} row {index}", text)


def split_sources(
    sources: Sequence[Source], num_train: int, num_eval: int, seed: int | None
) -> tuple[list[Source], list[Source]]:
    """The first `num_train` sources to train on and the next `num_eval` to evaluate.

    Texts that are blank or were taken already are passed over; in local files they were refused before, in a data
    set of the hub nobody can mend them.

    Args:
        sources: All there are.
        num_train: How many to train on.
        num_eval: How many to hold out.
        seed: Shuffles before the split; None keeps the order.
    """
    wanted = num_train + num_eval
    order = list(range(len(sources)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    chosen: dict[str, Source] = {}
    for index in order:
        if len(chosen) == wanted:
            break
        source = sources[index]
        if isinstance(source.text, str) and source.text.strip():
            chosen.setdefault(" ".join(source.text.split()), source)
    if len(chosen) < wanted:
        raise ConfigurationError(
            f"num_train={num_train} and num_eval={num_eval} ask for {wanted} different rows, but there are "
            f"{len(chosen)}; lower one of them or add rows."
        )
    kept = list(chosen.values())
    return kept[:num_train], kept[num_train:]


class Writing(Environment):
    """One turn in which each agent writes one text about a source that all of them read in full.

    A subclass names its agents and what they are told, the field of a row with the text, the shipped samples, and its
    reward forms.

    Args:
        dataset: "samples" for the shipped ones, a local file or folder, or a hub name.
        num_train: Sources to train on.
        num_eval: Sources held out.
        reward: Which of `forms`.
        single_agent: Whether one agent writes both texts.
        seed: Shuffles the sources before they are split; None keeps their order.
    """

    field: ClassVar[str]
    sample_file: ClassVar[str]
    source_label: ClassVar[str]
    instructions: ClassVar[Mapping[str, str]]
    single_instructions: ClassVar[Mapping[str, str]]
    forms: ClassVar[Mapping[str, Form]]

    horizon = 1
    min_reward = 0.0

    @abstractmethod
    def __init__(
        self, dataset: str, num_train: int, num_eval: int, reward: RewardName, single_agent: bool, seed: int | None
    ) -> None:
        name = type(self).__name__
        for key, count in (("num_train", num_train), ("num_eval", num_eval)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ConfigurationError(f"{name}: {key}={count!r} must be a whole number, at least 1.")
        if reward not in self.forms:
            raise ConfigurationError(f"{name}: reward={reward!r} is unknown; choose one of {sorted(self.forms)}.")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise ConfigurationError(f"{name}: seed={seed!r} must be a whole number, or null to keep the order.")
        self.form = self.forms[reward]
        self.single_agent = single_agent
        self.prompts = dict(self.single_instructions if single_agent else self.instructions)
        self.agent_ids = tuple(self.prompts)
        self.max_reward = self.form.maximum
        try:
            splits = split_sources(load_sources(dataset, self.field, self.sample_file), num_train, num_eval, seed)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {error}") from error
        train, evaluation = ([Task(source.task_id, {"source": source.text}) for source in split] for split in splits)
        check_tasks(name, train, evaluation)
        self.splits = {"train": train, "eval": evaluation}

    def tasks(self, split: str) -> Sequence[Task]:
        """The sources of `split` as tasks."""
        if split not in SPLITS:
            raise ConfigurationError(f"{type(self).__name__}: split {split!r} is unknown; choose one of {SPLITS}.")
        return self.splits[split]

    def reset(self, task: Task, rng: random.Random) -> tuple[Any, dict[str, str]]:
        """Show each agent its own instruction and the whole source."""
        source = self.shown(task.data["source"])
        return task, {
            agent_id: f"{instruction}\n\n{self.source_label}:\n{source}\n"
            for agent_id, instruction in self.prompts.items()
        }

    def shown(self, source: str) -> str:
        """The source as agents read it."""
        return source.strip()

    def step(self, state: Any, joint_action: Mapping[str, str]) -> Step:
        """Reward the texts; the episode is over."""
        score = score_pair(self.form, *self.texts(joint_action))
        return Step(state, {}, score.total, score.terms, terminated=True)

    def texts(self, joint_action: Mapping[str, str]) -> tuple[str, str]:
        """The first and the second text of a joint action."""
        if self.single_agent:
            return split_paragraphs(joint_action[self.agent_ids[0]])
        first, second = (joint_action[agent_id] for agent_id in self.agent_ids)
        return first, second

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """What the reward measured, its share of the maximum, and how much of the wording the source knows.

        `source_overlap` is the share of the texts' distinct content words that occur in the source. It is a rough
        sign of faithfulness and takes no part in the reward.
        """
        if not trajectory.turns:
            return {}
        turn = trajectory.turns[-1]
        texts = self.texts({agent_id: action.text for agent_id, action in turn.actions.items()})
        measures = measure(self.form, *texts)
        written = content_words(" ".join(texts))
        return {
            "length_ratio": measures.length_ratio,
            "vocabulary_ratio": measures.vocabulary_ratio,
            "jaccard": measures.jaccard,
            "transition_categories": float(measures.transition_categories),
            "source_overlap": ratio(len(written & vocabulary(trajectory.task.data["source"])), len(written)),
            "score_percent": 100 * turn.reward / self.max_reward,
        }
