"""A model of the hub that cannot be had is refused within seconds, in one line; no bars are shown for weights."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

from collm.errors import ConfigurationError
from collm.models import hub
from collm.models.loading import load_config, load_model


@pytest.fixture
def dead_hub(monkeypatch: pytest.MonkeyPatch):
    """A hub that takes connections and never answers, asked for at most half a second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "PATIENCE", 0.5)
        hub._silence_of_hub.cache_clear()
        yield
        hub._silence_of_hub.cache_clear()


def test_a_hub_that_does_not_answer_is_not_waited_for(dead_hub) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"^'nobody/nothing' is not in the local cache.*Timeout\)"):
        load_config("nobody/nothing")
    with pytest.raises(ConfigurationError, match="give its local folder"):  # and it is asked once
        load_config("nobody/nothing-else")
    assert time.monotonic() - began < 30


def test_offline_and_for_a_cached_model_it_is_not_asked(dead_hub, monkeypatch) -> None:
    monkeypatch.setattr(hub, "_silence_of_hub", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args: "/cache/config.json")
    hub.check_hub("somebody/something")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.check_hub("somebody/something")


def test_weights_load_without_a_bar_and_downloads_keep_theirs(tiny_folder, capfd) -> None:
    logging.enable_progress_bar()
    load_model(tiny_folder, "float32")
    assert "Loading weights" not in capfd.readouterr().err
    assert not are_progress_bars_disabled()
