"""A hub for tests: a local HTTP server with the calls that a push of small files makes."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

TOKEN = "hf_test"
_REPO = re.compile(r"/api/(model|dataset)s/([\w.-]+/[\w.-]+)(/[^?]*)?")


@dataclass
class Repo:
    """A repository: its files as the commits left them."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    num_commits: int = 0


@dataclass
class FakeHub:
    """What the server knows. Keys of `repos` are ("model" or "dataset", "owner/name")."""

    endpoint: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict[tuple[str, str], Repo])
    failing: str = ""
    """Part of the paths that are answered with an internal error."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """The hub on a free port, until the end of the block."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid credentials"})
        elif self.hub.failing and self.hub.failing in self.path:
            self._send(501, {"error": "out of order"})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif match := _REPO.match(self.path):
            self._repo(match[1], match[2], match[3] or "", body)
        else:
            self._send(404, {"error": f"no such call: {self.path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        kind, name = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            self._send(403, {"error": "You don't have the rights to create it"})
            return
        exists = (kind, name) in self.hub.repos
        if not exists:
            private = asked.get("private", asked.get("visibility") == "private")
            self.hub.repos[kind, name] = Repo(private)
        prefix = "datasets/" if kind == "dataset" else ""
        self._send(409 if exists else 200, {"url": f"{self.hub.endpoint}/{prefix}{name}"})

    def _validate(self, content: str) -> None:
        """As the hub does: base_model and datasets are hub ids."""
        header = yaml.safe_load(content.split("---")[1])
        ids = [header["base_model"]] if "base_model" in header else []
        wrong = [name for name in ids + header.get("datasets", []) if name.count("/") != 1]
        errors = [{"message": f"{name!r} is not valid"} for name in wrong]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _repo(self, kind: str, name: str, rest: str, body: bytes) -> None:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            self._send(404, {"error": "Repository not found"})
        elif rest in ("", "/revision/main"):
            document = {"id": name, "private": repo.private, "sha": "0" * 40, "tags": []}
            names = [{"rfilename": path} for path in repo.files]
            self._send(200, {**document, "siblings": names, "downloads": 0, "likes": 0})
        elif rest.startswith("/tree/"):
            files = [
                {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                for path, data in repo.files.items()
            ]
            self._send(200, files)
        elif rest.startswith("/preupload/"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})
        elif rest.startswith("/commit/"):
            self._commit(repo, body)
        else:
            self._send(404, {"error": f"no such call: {self.path}"})

    def _commit(self, repo: Repo, body: bytes) -> None:
        for line in body.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "deletedFile":
                del repo.files[value["path"]]
        repo.num_commits += 1
        self._send(200, {"commitUrl": f"{self.hub.endpoint}/c/1", "commitOid": "0" * 40})

    def _send(self, code: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
