"""Agents are pushed to a hub: one that listens on this machine and keeps what arrives."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from collm.callbacks.hub import push
from collm.errors import TrainingError


class Hub(BaseHTTPRequestHandler):
    """What the hub's client asks for when repositories are made and written: the rest is not found."""

    private: dict[str, bool] = {}
    files: dict[str, dict[str, bytes]] = {}
    large: dict[str, bytes] = {}

    def do_GET(self) -> None:
        self.answer({"name": "me", "type": "user"} if self.path == "/api/whoami-v2" else None)

    def do_PUT(self) -> None:
        self.large[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_POST(self) -> None:
        content, parts = self.body(), self.path.partition("?")[0].split("/")
        if self.headers["authorization"] != "Bearer hf_me":
            self.answer(None, 401)
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "me":
                self.answer({"error": "not yours"}, 403)
                return
            self.private[name] = asked.get("private", asked.get("visibility") == "private")  # by version of the client
            self.files[name] = {}
            self.answer({"url": f"{self.address()}/{name}"})
        elif "preupload" in parts:
            kinds = {one["path"]: one["path"].endswith(".safetensors") for one in json.loads(content)["files"]}
            found = [
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                for path, large in kinds.items()
            ]
            self.answer({"files": found})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.address()}/lfs/{one['oid']}"}}}
                for one in json.loads(content)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "commit" in parts:
            name = "/".join(parts[3:5])
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[name][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[name][value["path"]] = self.large[value["oid"]]
            self.answer({"commitUrl": f"{self.address()}/{name}/commit/1", "commitOid": "1"})
        else:
            self.answer(None)

    def body(self) -> bytes:
        if self.headers["transfer-encoding"] != "chunked":
            return self.rfile.read(int(self.headers["content-length"]))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(404 if content is None and status == 200 else status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """The hub, at the address where HF_ENDPOINT would say it is: that is read once, by the first import."""
    kept = type("Kept", (Hub,), {"private": {}, "files": {}, "large": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kept)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose servers are not imitated here
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    yield kept
    server.shutdown()
    server.server_close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_agent_of_a_run_is_pushed_to_a_private_repository(
    fit: Callable[..., int], hub: type[Hub], run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--push_to_hub", "me/team", "--trainer.max_epochs=1") == 0
    assert hub.private == {"me/team-a1": True, "me/team-a2": True}
    for name in ("a1", "a2"):
        written = contents(run_folder / "agents" / name)
        assert {"model.safetensors", "collm_agent.json", "README.md", "tokenizer.json"} <= set(written)
        assert hub.files[f"me/team-{name}"] == written
    assert f"pushed to {constants.ENDPOINT}/me/team-a2 (private)" in capsys.readouterr().out


def test_a_push_that_is_refused_says_where_the_agents_are(hub: type[Hub], tmp_path: Path) -> None:
    (tmp_path / "a1").mkdir()
    (tmp_path / "a1" / "config.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"a1 could not be pushed to others/team-a1 .*The agents are complete in"):
        push(tmp_path, ["a1"], "others/team")
    assert hub.files == {}
