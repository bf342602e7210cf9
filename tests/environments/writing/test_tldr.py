import random

import pytest

from collm.environments.writing.arxiv import ArXiv
from collm.environments.writing.base import MARKER
from collm.environments.writing.tldr import TLDR
from collm.errors import ConfigurationError
from collm.trajectory import Action, Trajectory, Turn

ENVIRONMENTS = [TLDR, ArXiv]
SHORT = "Bamboo from next door is growing into my vegetable beds."
LONG = (
    "My neighbour planted bamboo along our fence. However, it now spreads into the vegetable beds, so I dig it out "
    "every week, because he laughs about it."
)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_samples_are_distinct_and_split_apart(environment):
    played = environment()
    train, evaluation = played.tasks("train"), played.tasks("eval")
    assert len(train) == 2 * len(evaluation)
    sources = [task.data["source"] for task in (*train, *evaluation)]
    assert len(set(sources)) == len(sources) == (48 if environment is TLDR else 24)
    assert len({task.task_id for task in (*train, *evaluation)}) == len(sources)
    # No two begin alike, as those from one template would; headers of posts aside.
    bodies = [source.split("POST: ")[-1] for source in sources]
    assert len({" ".join(body.split()[:4]) for body in bodies}) == len(bodies)
    assert all(90 <= len(body.split()) <= 180 for body in bodies)


def test_posts_have_the_schema_of_the_public_set():
    for task in TLDR().tasks("train"):
        source = task.data["source"]
        assert source.startswith("SUBREDDIT: r/")
        assert "\n\nTITLE: " in source
        assert "\n\nPOST: " in source
        assert source.endswith("\n\nTL;DR:")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_each_agent_sees_its_own_instruction_and_the_whole_source(environment):
    played = environment()
    task = played.tasks("train")[0]
    _, observations = played.reset(task, random.Random(0))
    assert tuple(observations) == played.agent_ids
    body = task.data["source"].removesuffix("TL;DR:").strip()
    for agent_id, observation in observations.items():
        assert body in observation
        for other in set(played.agent_ids) - {agent_id}:
            assert played.prompts[agent_id] in observation
            assert played.prompts[other] not in observation


def test_agent_ids():
    assert TLDR().agent_ids == ("summarizer", "elaborator")
    assert ArXiv().agent_ids == ("background", "method")
    assert TLDR(single_agent=True).agent_ids == ArXiv(single_agent=True).agent_ids == ("writer",)


def test_an_episode():
    played = TLDR()
    task = played.tasks("train")[0]
    state, _ = played.reset(task, random.Random(0))
    step = played.step(state, {"summarizer": SHORT, "elaborator": LONG})
    # Characters without blanks: 47 and 123, ratio 2.62. Distinct words: 10 and 25, ratio 2.5. Categories: time ("now"),
    # contrast ("however") and cause, 0.6 ln 4 = 0.8318, term 0.3327. Content words: 6 and 13, of which bamboo,
    # vegetable and beds are shared, 3 / 16 is above the cap. 0.5 + 1 + 0.5 + 0.3327 + 0.6 = 2.9327.
    assert step.terminated
    assert step.observations == {}
    assert step.reward == pytest.approx(2.9327, abs=1e-4)
    assert sum(step.terms.values()) == pytest.approx(step.reward)

    actions = {"summarizer": Action(SHORT), "elaborator": Action(LONG)}
    metrics = played.metrics(Trajectory(task, 0, 1, played.max_reward, [Turn({}, actions, step.reward, step.terms)]))
    assert metrics["length_ratio"] == pytest.approx(123 / 47)
    assert metrics["vocabulary_ratio"] == pytest.approx(2.5)
    assert metrics["transition_categories"] == 3
    assert metrics["jaccard"] == pytest.approx(3 / 16)
    assert metrics["score_percent"] == pytest.approx(97.76, abs=0.01)  # 2.9327 / 3


def test_one_agent_has_the_reward_of_two_agents_for_its_two_paragraphs():
    two, one = TLDR(), TLDR(single_agent=True)
    task = two.tasks("train")[0]
    state, _ = two.reset(task, random.Random(0))
    pair = two.step(state, {"summarizer": SHORT, "elaborator": LONG})
    assert one.step(state, {"writer": f"Paragraph 1: {SHORT}\n{MARKER}\nParagraph 2: {LONG}"}) == pair


def test_source_overlap(tmp_path):
    path = tmp_path / "posts.jsonl"
    path.write_text('{"prompt": "The red fox jumps"}\n{"prompt": "A blue bird sings"}\n')
    played = TLDR(str(path), num_train=1, num_eval=1)
    task = played.tasks("train")[0]
    actions = {"summarizer": Action("the fox"), "elaborator": Action("a red wolf and a fox run")}
    trajectory = Trajectory(task, 0, 1, 3.0, [Turn({}, actions, 0.0)])
    # Content words fox, red, wolf, run: two of four are in the source.
    assert played.metrics(trajectory)["source_overlap"] == 0.5
    actions = {"summarizer": Action(""), "elaborator": Action("of the")}
    assert played.metrics(Trajectory(task, 0, 1, 3.0, [Turn({}, actions, 0.0)]))["source_overlap"] == 0.0
    assert played.metrics(Trajectory(task, 0, 1, 3.0, [])) == {}


def test_maximum_follows_the_reward():
    assert TLDR().max_reward == ArXiv().max_reward == 3.0
    assert TLDR(reward="released").max_reward == pytest.approx(2.98)
    assert TLDR().min_reward == 0.0


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, r"num_train is 0; it must be a whole number of at least 1"),
        ({"num_eval": -3}, r"num_eval is -3; it must be"),
        ({"num_eval": True}, r"num_eval is True; it must be"),
        ({"num_train": 2.5}, r"num_train is 2\.5; it must be"),
        ({"num_train": 4000}, r"num_train=4000 and num_eval=\d+ ask for 40\d\d different rows, but there are (48|24);"),
        ({"reward": "mine"}, "reward is 'mine'; choose one of paper, released"),
        ({"seed": "7"}, r"seed is '7'; it must be"),
        ({"dataset": ""}, r"dataset '': give"),
    ],
)
def test_bad_options(environment, options, message):
    with pytest.raises(ConfigurationError, match=rf"^{environment.__name__}(: |\.){message}"):
        environment(**options)


def test_unknown_split():
    with pytest.raises(ConfigurationError, match="split is 'test'; choose one of train, eval"):
        TLDR().tasks("test")
