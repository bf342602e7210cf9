"""Without an answer from the hub, runs say so within seconds and use what was downloaded; no bars stand for weights."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

from collm.environments.writing.tldr import TLDR
from collm.errors import ConfigurationError
from collm.models.loading import load_config, load_model
from collm.runtime import hub


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch):
    """A hub that takes connections and never answers, waited for half a second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "PATIENCE", 0.5)
        yield


def test_a_model_that_was_not_downloaded_is_refused_at_once(silent_hub, capsys) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="from hub entry 'nobody/nothing'.* give its local folder"):
        load_config("nobody/nothing")
    with pytest.raises(ConfigurationError, match="from hub entry 'nobody/nothing-else'"):
        load_config("nobody/nothing-else")
    assert capsys.readouterr().err.count("does not answer (") == 1
    assert time.monotonic() - began < 30


def test_a_data_set_that_was_not_downloaded_is_refused_at_once(silent_hub, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is missing")
    # the package reads whether the hub answers when it is imported, which another test may have done
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="dataset 'nobody/nothing' could not be loaded from the hub"):
        TLDR(dataset="nobody/nothing")
    assert constants.HF_HUB_OFFLINE
    assert time.monotonic() - began < 30


def test_offline_it_is_not_asked(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("the hub was asked"))
    hub.ask_hub()


def test_weights_load_without_a_bar_and_downloads_keep_theirs(tiny_folder, capfd) -> None:
    logging.enable_progress_bar()
    load_model(tiny_folder, "float32")
    assert "Loading weights" not in capfd.readouterr().err
    assert not are_progress_bars_disabled()
