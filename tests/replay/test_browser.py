"""The replay page in a real browser: it opens from disk, filters, and steps by keyboard, without an error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hostile import ATTACKS, SVG, episode

from collm.replay.page import write_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing"),
]
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1400,1000"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "transcripts").mkdir()
    for step, gain in ((0, 0.25), (1024, 1.25)):
        episodes = [episode(task, gain, text) for task in ("alpha", "beta") for text in ATTACKS]
        episodes.append(episode("gamma", gain, turns=0, error="the sandbox broke"))
        episodes.append(episode("delta", gain) | {"turns": [episode("delta", gain)["turns"][0] | {"picture": SVG}]})
        for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            crossed = episode("crossed", float(number), turns=1)
            uids = {"helper": f"row {row}", "main": f"column {column}"}
            crossed["turns"][0]["branch"] = {"node": number, "parent": -1, "actions": uids}
            episodes.append(crossed)
        path = folder / "transcripts" / f"validate-{step:08d}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in episodes))
    write_page([folder], folder / "replay.html", "a run")
    return folder / "replay.html"


@pytest.fixture
def opened(browser, page):
    def at(address: str = ""):
        browser.get("about:blank")
        browser.get(page.as_uri() + address)
        return browser

    yield at
    assert browser.title == "a run · replay"  # none of the attacks ran
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def text_of(browser, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def press(browser, key: str) -> None:
    browser.find_element(By.TAG_NAME, "body").send_keys(key)


def test_it_opens_with_the_same_task_before_and_after(opened):
    browser = opened()
    assert "20 of 40 episodes" in text_of(browser, ".count")  # those after training
    heads = [
        one.text
        for one in browser.find_elements(By.CSS_SELECTOR, ".pair h3")
        if "training" in one.text or "joint" in one.text
    ]
    assert heads == ["before training", "after 1,024 joint samples"]


def test_the_keyboard_steps_through_turns_episodes_and_views(opened):
    browser = opened("#episode=1&turn=1")
    assert text_of(browser, "#where") == "turn 1 of 2"
    press(browser, Keys.ARROW_RIGHT)
    assert text_of(browser, "#where") == "turn 2 of 2"
    press(browser, Keys.ARROW_RIGHT)  # there is no third
    assert text_of(browser, "#where") == "turn 2 of 2"
    press(browser, Keys.ARROW_DOWN)
    assert browser.execute_script("return location.hash") == "#episode=2&turn=2"
    press(browser, "b")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".pair .column")) == 2
    press(browser, "p")
    assert shades(browser) == ["0.00", "0.30", "1.00"]
    press(browser, "e")
    assert shades(browser) == ["0.50", "0.00", "1.00"]
    assert "entropy 2.50" in browser.find_element(By.CSS_SELECTOR, ".token").get_attribute("title")
    pressed = browser.find_elements(By.CSS_SELECTOR, ".tools button[aria-pressed=true]")
    assert [one.text for one in pressed] == ["changes", "token entropies"]
    press(browser, "e")
    assert shades(browser) == []


def test_a_page_without_entropies_has_no_switch_for_them(browser, tmp_path):
    one = episode("alpha", 1.0)
    for turn in one["turns"]:
        turn["tokens"] = {"helper": [["say", -0.01]]}
    (tmp_path / "old.jsonl").write_text(json.dumps(one) + "\n")
    write_page([tmp_path / "old.jsonl"], tmp_path / "old.html")
    browser.get((tmp_path / "old.html").as_uri())
    names = [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".tools button")]
    assert names[-1] == "token probabilities"


def shades(browser) -> list[str]:
    return [one.get_attribute("data-shade") for one in browser.find_elements(By.CSS_SELECTOR, ".token")[:3]]


def test_a_link_opens_an_episode_and_turn(opened):
    browser = opened("#episode=9&turn=2&beside=1")
    assert text_of(browser, "#where") == "turn 2 of 2"
    assert text_of(browser, "main h2") == "beta"
    assert len(browser.find_elements(By.CSS_SELECTOR, ".pair .column")) == 2


def test_the_list_filters_searches_and_sorts(opened):
    browser = opened()
    Select(browser.find_element(By.ID, "source")).select_by_value("")
    browser.execute_script("document.activeElement.blur()")
    press(browser, "/")
    browser.switch_to.active_element.send_keys("gam")
    assert [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".list tbody a")] == ["gamma", "gamma"]
    browser.switch_to.active_element.send_keys(Keys.BACKSPACE * 3)
    outcome = Select(browser.find_element(By.ID, "outcome"))
    outcome.select_by_value("failed")
    assert "2 of 40 episodes" in text_of(browser, ".count")
    outcome.select_by_value("")
    browser.find_element(By.XPATH, "//th/button[contains(., 'return')]").click()
    returns = [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".list tbody td:nth-child(2) .number")]
    assert returns[0] == "3"
    assert returns[-1] in ("0", "failed")


def test_a_turn_shows_values_terms_changes_and_rejected_lines(opened):
    browser = opened("#episode=1&turn=2")
    rows = [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".turns tbody th")]
    assert rows == ["reward", "return to go", "V(h)", "advantage"]
    assert [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".terms .number")] == ["0.25", "−0.25"]
    main = browser.find_element(By.CSS_SELECTOR, ".card.agent1")
    assert main.find_element(By.CSS_SELECTOR, ".rejected .words").text == "- nonsense 1"
    assert main.find_element(By.CSS_SELECTOR, ".rejected .reason").text == "unknown command"
    assert main.find_element(By.CSS_SELECTOR, ".line.gone .words").text == "turn 0"
    assert main.find_element(By.CSS_SELECTOR, ".line.new .words").text == "turn 1"
    press(browser, "d")
    assert browser.find_elements(By.CSS_SELECTOR, ".line.new") == []


@pytest.mark.parametrize("place", range(len(ATTACKS)))
def test_hostile_text_is_shown_as_it_was_written(opened, place):
    browser = opened(f"#episode={place + 1}&turn=1")
    shown = browser.execute_script("return document.querySelector('.card.agent0 .lines:last-of-type').textContent")
    written = ATTACKS[place].encode("utf-8", "replace").decode()
    assert written.split("\n")[0] in shown.replace("\ufffd", "\x00") or written in shown
    assert browser.execute_script("return document.scripts.length") == 2


def test_a_script_in_a_picture_does_not_run(opened):
    browser = opened("#episode=16&turn=1")
    assert text_of(browser, "main h2") == "delta"
    image = browser.find_element(By.CSS_SELECTOR, "img.picture")
    assert image.get_property("naturalWidth") == 30


def test_siblings_of_crossed_actions_are_a_matrix(opened):
    browser = opened("#episode=17&turn=1")
    cells = browser.find_elements(By.CSS_SELECTOR, ".siblings td.cell")
    assert [one.text for one in cells] == ["0", "1", "2", "3"]
    cells[2].find_element(By.TAG_NAME, "button").click()
    assert browser.execute_script("return location.hash") == "#episode=19&turn=1"


def test_a_failed_episode_says_why(opened):
    browser = opened("#episode=15&turn=1")
    assert "the sandbox broke" in text_of(browser, ".error")


@pytest.mark.parametrize("name", ["constructor", "__proto__"])
def test_an_agent_may_have_the_name_of_what_every_object_has(browser, tmp_path, name):
    one = json.loads(json.dumps(episode("alpha", 1.0)).replace('"main"', f'"{name}"'))
    one["turns"][0]["info"] = {}  # nothing of it was rejected
    (tmp_path / "named.jsonl").write_text(json.dumps(one) + "\n")
    write_page([tmp_path / "named.jsonl"], tmp_path / "named.html")
    browser.get((tmp_path / "named.html").as_uri())
    assert [card.text for card in browser.find_elements(By.CSS_SELECTOR, ".card h3")] == ["helper", name]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
