from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from compress import save_artefact
from compress.card import Told, write_card

ROOT = Path(__file__).parents[2]
PUSH = """
import sys
from pathlib import Path
from compress.hub import push_to_hub
from kd.errors import InputError
try:
    print(push_to_hub(Path(sys.argv[1]), sys.argv[2], private="private" in sys.argv))
except InputError as error:
    sys.exit(str(error))
"""


class Hub(BaseHTTPRequestHandler):
    """The endpoints of the Hub that an upload speaks to, as huggingface_hub calls them; large files go by LFS."""

    server: Server

    def do_POST(self) -> None:
        told = self._body()
        if self.headers.get("Authorization") != "Bearer secret":
            return self._answer({"error": "Invalid username or password."}, 401)
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.server.repos.append(json.loads(told))
            return self._answer({"url": f"{self.server.address}/{self._name(json.loads(told))}", "id": "1"})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "lfs" if "model." in file["path"] else "regular"}
                for file in json.loads(told)["files"]
            ]
            return self._answer({"files": [file | {"shouldIgnore": False, "oid": None} for file in files]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                each | {"actions": {"upload": {"href": f"{self.server.address}/store/{each['oid']}"}}}
                for each in json.loads(told)["objects"]
            ]
            return self._answer({"objects": objects, "transfer": "basic"})
        if path.endswith("/commit/main"):
            return self._commit(path, [json.loads(line) for line in told.splitlines()])
        return self._answer({"error": f"unknown: {path}"}, 404)

    def do_PUT(self) -> None:
        content = self._body()
        self.server.stored[hashlib.sha256(content).hexdigest()] = content
        self._answer({})

    def do_GET(self) -> None:
        self._answer({"error": "nothing there"}, 404)

    def _commit(self, path: str, lines: list[dict[str, Any]]) -> None:
        repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[f"{repo}/{value['path']}"] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[f"{repo}/{value['path']}"] = self.server.stored[value["oid"]]
        self.server.commits.append(next(line["value"]["summary"] for line in lines if line["key"] == "header"))
        self._answer({"success": True, "commitOid": "c0ffee", "commitUrl": f"{self.server.address}/{repo}/commit/c0"})

    @staticmethod
    def _name(told: dict[str, Any]) -> str:
        return "/".join(filter(None, (told.get("organization"), told["name"])))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, told: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: list[dict[str, Any]] = []
        self.commits: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}


@pytest.fixture
def hub():
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def push(folder, name, home, address, token="secret", *words):
    """In a process of its own: huggingface_hub reads its environment as it is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-W", "ignore", "-c", PUSH, str(folder), name, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def artefact(exported, tmp_path):
    folder = tmp_path / "artefact"
    save_artefact(exported, folder)
    write_card(folder, Told("small"))
    (folder / "step.json").write_text("{}")
    return folder


def test_the_artefact_and_its_card_arrive_and_nothing_else(hub, artefact, exported, tmp_path):
    done = push(artefact, "ada/small", tmp_path, hub.address, "secret", "private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/ada/small"
    assert [Hub._name(told) for told in hub.repos] == ["ada/small"]
    assert "private" in json.dumps(hub.repos)
    assert hub.files == {
        "ada/small/model.onnx": exported.path.read_bytes(),
        "ada/small/README.md": (artefact / "README.md").read_bytes(),
    }
    assert len(hub.commits) == 1


def test_what_keeps_it_from_the_hub_is_one_clear_line(hub, artefact, tmp_path):
    closed = "http://127.0.0.1:9"
    for name, address, token, words in (
        ("ada/small", hub.address, "", "there is no token for the hub"),
        ("ada/small", hub.address, "wrong", "does not take it: .*(401|password)"),
        ("ada/small/more", hub.address, "secret", "does not take it: "),
        ("ada/small", closed, "secret", "does not take it: .*[Cc]onnect"),
    ):
        done = push(artefact, name, tmp_path, address, token)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        line = " ".join(done.stderr.split())
        assert line.startswith(f"to: {name}: ")
        assert re.search(words, line), line
    assert not hub.files


def test_what_has_no_card_or_was_altered_is_not_sent(hub, artefact, tmp_path):
    (artefact / "README.md").unlink()
    assert "has no card" in push(artefact, "ada/small", tmp_path, hub.address).stderr
    content = (artefact / "model.onnx").read_bytes()
    (artefact / "model.onnx").write_bytes(content[:100] + b"x" + content[101:])
    assert "truncated or altered" in push(artefact, "ada/small", tmp_path, hub.address).stderr
    assert not hub.repos
