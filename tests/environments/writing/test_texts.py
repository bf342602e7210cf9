import json
import sys
from types import SimpleNamespace

import pytest

from collm.environments.writing.texts import load_texts, split_texts
from collm.environments.writing.tldr import TLDR
from collm.errors import ConfigurationError

TEXTS = ["first, with a comma", 'second "quoted"\nover two lines', "third: 三つ目"]


def texts(rows):
    return [row.fields["prompt"] for row in rows]


def load(path):
    return load_texts(str(path), "prompt", "tldr_samples.jsonl")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# Formats


def test_jsonl(tmp_path):
    lines = [json.dumps({"prompt": text, "completion": "x"}) for text in TEXTS]
    rows = load(write(tmp_path / "a.jsonl", "\n\n".join(lines)))
    assert texts(rows) == TEXTS
    assert [row.row_id for row in rows] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:5"]


def test_line_separators_inside_a_json_string_do_not_split_it(tmp_path):
    row = json.dumps({"prompt": "one\u2028two"}, ensure_ascii=False)
    assert texts(load(write(tmp_path / "a.jsonl", row))) == ["one\u2028two"]


def test_json(tmp_path):
    assert texts(load(write(tmp_path / "a.json", json.dumps([{"prompt": text} for text in TEXTS], indent=1)))) == TEXTS


def test_csv(tmp_path):
    rows = "id,prompt\r\n" + "\r\n".join(f'{i},"{text.replace(chr(34), chr(34) * 2)}"' for i, text in enumerate(TEXTS))
    (tmp_path / "a.csv").write_bytes(rows.encode("utf-8-sig"))
    assert texts(load(tmp_path / "a.csv")) == TEXTS


def test_folder_of_text_files(tmp_path):
    for name, text in zip(("b.txt", "a.txt", "c.txt"), TEXTS, strict=True):
        write(tmp_path / name, text)
    rows = load(tmp_path)
    assert texts(rows) == [TEXTS[1], TEXTS[0], TEXTS[2]]
    assert [row.row_id for row in rows] == ["a.txt", "b.txt", "c.txt"]


def test_folder_of_row_files_ignores_others(tmp_path):
    write(tmp_path / "b.jsonl", '{"prompt": "two"}')
    write(tmp_path / "a.json", '[{"prompt": "one"}]')
    write(tmp_path / "README.md", "about")
    assert texts(load(tmp_path)) == ["one", "two"]


def test_an_existing_folder_is_local_even_if_it_reads_like_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "trl-lib" / "tldr"
    folder.mkdir(parents=True)
    write(folder / "a.txt", "one")
    assert texts(load("trl-lib/tldr")) == ["one"]


# What is wrong, where, and what to do


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl' holds no rows; write one"),
        ("a.jsonl", " \n\n", r"a\.jsonl' holds no rows"),
        ("a.json", "[]", r"a\.json' holds no rows"),
        ("a.csv", "prompt\n", r"a\.csv' holds no rows"),
        ("a.jsonl", '{"prompt": "x"}\n{prompt: y}\n', r"a\.jsonl line 2 is not JSON \(.*\); write one object"),
        ("a.jsonl", '{"prompt": "x"}\n\n[1]\n', r"a\.jsonl line 3: expected one object .* got list"),
        ("a.jsonl", '{"prompt": "x"}\n{"post": "y"}\n', r"a\.jsonl line 2: no field 'prompt' \(it has \['post'\]\)"),
        ("a.jsonl", '{"prompt": 3}', r"a\.jsonl line 1: the field 'prompt' must be text that is not blank, got 3"),
        ("a.jsonl", '{"prompt": " "}', r"line 1: the field 'prompt' must be text"),
        (
            "a.jsonl",
            '{"prompt": "x"}\n{"prompt": "y"}\n{"prompt": " x "}',
            r"a\.jsonl line 3 repeats .*a\.jsonl line 1",
        ),
        ("a.json", '[{"prompt": "x"},\n {"prompt" "y"}]', r"a\.json line 2 is not JSON"),
        ("a.json", '{"prompt": "x"}', r"a\.json line 1: expected a list of objects"),
        ("a.json", '[{"prompt": "x"}, {}]', r"a\.json entry 2: no field 'prompt'"),
        (
            "a.csv",
            "post,title\nx,y\n",
            r"a\.csv line 2: no field 'prompt' \(it has \['post', 'title'\]\)",
        ),
        (
            "a.csv",
            "title,prompt\nx,y\nz\n",
            r"a\.csv line 3: the field 'prompt' must be text that is not blank, got None",
        ),
        ("a.csv", "prompt\n" + "x" * 200_000, r"a\.csv line 2: field larger than field limit"),
        ("a.arrow", "x", r"cannot read a \.arrow file as rows; give one of \.jsonl, \.json, \.csv"),
        ("a", "x", r"cannot read a suffixless file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(ConfigurationError, match=message):
        load(write(tmp_path / name, content))


def test_bad_encoding(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "Ä"}'.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"a\.jsonl cannot be read \(.*\); give a readable file in UTF-8"):
        load(tmp_path / "a.jsonl")


def test_bad_folders(tmp_path):
    with pytest.raises(ConfigurationError, match=r"has no \.jsonl, .* \(found: no files\)"):
        load(tmp_path)
    write(tmp_path / "data.arrow", "x")
    with pytest.raises(ConfigurationError, match=r"\(found: data\.arrow\); convert them"):
        load(tmp_path)
    write(tmp_path / "a.txt", " \n")
    with pytest.raises(ConfigurationError, match=r"a\.txt: the field 'prompt' must be text"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["missing", "./missing", "data/missing.jsonl", "a/b/c", "/missing/x", "owner/", "~/missing/x", "x" * 5000]
)
def test_missing_path(name):
    with pytest.raises(
        ConfigurationError, match="there is no such file or folder .* no hub name either; give 'samples'"
    ):
        load(name)


def test_the_environment_names_itself(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"post": "x"}')
    with pytest.raises(ConfigurationError, match=r"^TLDR: .*a\.jsonl line 1: no field 'prompt'"):
        TLDR(str(path))


# The hub


class Rows:
    """What the package datasets returns, as far as it is used."""

    def __init__(self, rows, column="prompt"):
        self.rows = rows
        self.column = column

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {self.column: self.rows[index]}


@pytest.fixture
def hub(monkeypatch):
    """Put a stand-in for the package datasets in place; its answer is the given value, raised if it is an error."""

    def install(answer):
        def load_dataset(name, split):
            assert (name, split) == ("trl-lib/tldr", "train")
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))

    return install


def test_hub_rows_in_order_without_blank_and_repeated_ones(hub):
    hub(Rows(["a", " ", "b", "a ", None, "c", "d"]))
    train, evaluation = split_texts(load("trl-lib/tldr"), "prompt", 2, 1, None)
    assert [task.data["source"] for task in (*train, *evaluation)] == ["a", "b", "c"]
    assert [task.task_id for task in train] == ["trl-lib/tldr:0", "trl-lib/tldr:2"]
    with pytest.raises(ConfigurationError, match="ask for 5 different rows, but there are 4"):
        split_texts(load("trl-lib/tldr"), "prompt", 4, 1, None)


def test_hub_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match=r"'trl-lib/tldr' looks like a hub name.*pip install 'collm\[hub\]'"):
        TLDR("trl-lib/tldr")


def test_hub_out_of_reach(hub):
    hub(ConnectionError("no route to host"))
    message = r"'trl-lib/tldr' could not be loaded .*ConnectionError: no route to host.*to_json\('train\.jsonl'\).*path"
    with pytest.raises(ConfigurationError, match=message):
        TLDR("trl-lib/tldr")


def test_hub_without_the_column(hub):
    hub(Rows(["a"], "post"))
    with pytest.raises(ConfigurationError, match=r"has no column 'prompt' \(it has \['post'\]\)"):
        TLDR("trl-lib/tldr")


# Splits


def test_split_keeps_order_or_shuffles_by_seed(tmp_path):
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"prompt": f"text {i}"}) for i in range(20)))
    train, evaluation = split_texts(load(path), "prompt", 12, 8, None)
    assert [task.data["source"] for task in (*train, *evaluation)] == [f"text {i}" for i in range(20)]
    first, again, other = (split_texts(load(path), "prompt", 12, 8, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    for train, evaluation in (first, other):
        assert (len(train), len(evaluation)) == (12, 8)
        assert not {task.task_id for task in train} & {task.task_id for task in evaluation}


def test_counts_beyond_the_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"prompt": "x"}\n{"prompt": "y"}')
    with pytest.raises(
        ConfigurationError, match="num_train=2 and num_eval=1 ask for 3 different rows, but there are 2"
    ):
        TLDR(str(path), num_train=2, num_eval=1)
