"""Ray's token: found where Ray's own tools look, sent to who asks for it, private where ours."""

import json
import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from ray.exceptions import AuthenticationError

from prefsweep.orchestrator.execution import ray_token
from prefsweep.orchestrator.execution.jobs import _client
from prefsweep.orchestrator.execution.ray_session import ON_LOOPBACK, start_ray
from prefsweep.orchestrator.execution.ray_token import token_place, use_token_if_asked
from prefsweep.sweeps.errors import ClusterError

TOKEN, OTHER = "f3a1c5d2e4b6978812345678aabbccdd", "00000000000000000000000000000000"
HEAD = "10.0.0.1:6379"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder without a token, and no setting of Ray's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # what the test sets is taken away again
        monkeypatch.delenv(name)
    yield tmp_path
    monkeypatch.undo()
    ray_token.read_environment()


def in_a_file(folder: Path, token: str, mode: int = 0o600) -> Path:
    file = folder / "auth_token"
    folder.mkdir(exist_ok=True)
    file.write_text(f"{token}\n")
    file.chmod(mode)
    return file


def set_token(where: str, token: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match where:
        case "RAY_AUTH_TOKEN":
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        case "RAY_AUTH_TOKEN_PATH":
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(in_a_file(home / "elsewhere", token)))
        case _:
            in_a_file(home / ".ray", token)


PLACES = ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"]


class Head(HTTPServer):
    """Answers like the dashboard of a cluster that asks for a token, or for none (None)."""

    def __init__(self, token: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.token, self.sent = token, list[str]()
        self.address = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Head)
        sent, wanted = self.headers.get("Authorization", ""), self.server.token or ""
        self.server.sent.append(sent)
        self.send_response(200 if wanted in sent else 403 if sent else 401)
        self.end_headers()
        answer = {"version": "4", "ray_version": "2", "ray_commit": ""}
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(params=[TOKEN])
def head(request: pytest.FixtureRequest) -> Iterator[Head]:
    with Head(request.param) as head:
        Thread(target=head.serve_forever, daemon=True).start()
        yield head
        head.shutdown()


@pytest.mark.parametrize("where", PLACES)
def test_a_job_is_sent_with_the_token_that_exists(
    where: str, head: Head, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_token(where, TOKEN, home, monkeypatch)
    _client(head.address)
    assert head.sent[-1] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("head", [None], indirect=True)
def test_who_asks_for_no_token_is_sent_none(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    _client(head.address)
    assert set(head.sent) == {""} and "RAY_AUTH_MODE" not in os.environ


def test_a_dashboard_without_its_token_is_one_sentence(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError, match=r"requires a token, and there is none here: set RAY_"):
        _client(head.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", OTHER)
    with pytest.raises(
        ClusterError, match="another token than that of RAY_AUTH_TOKEN: set"
    ) as error:
        _client(head.address)
    assert OTHER not in str(error.value)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens with which a head that asks for TOKEN was asked, the last one of them now."""
    tokens: list[str] = []

    def ask(address: str) -> None:
        token, mode = "", os.environ.get("RAY_AUTH_MODE", "disabled")
        if mode == "token" and (place := token_place()) is not None:
            file = Path(place.partition(" ")[0])
            token = os.environ.get(place) or file.read_text().strip()
        tokens.append(token)
        if token != TOKEN:
            raise AuthenticationError("InvalidAuthToken")

    monkeypatch.setattr(ray_token, "_ask", ask)
    return tokens


@pytest.mark.parametrize("where", PLACES)
def test_a_cluster_that_asks_gets_the_token_that_exists(
    where: str, asked: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_token(where, TOKEN, home, monkeypatch)
    use_token_if_asked(HEAD)
    assert asked == ["", TOKEN] and os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("where", PLACES)
def test_a_wrong_token_is_told_with_its_place(
    where: str, asked: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_token(where, OTHER, home, monkeypatch)
    place = re.escape(where.replace("~", str(home)))
    with pytest.raises(
        ClusterError, match=rf"requires another token .*{place}.*: set RAY"
    ) as error:
        use_token_if_asked(HEAD)
    assert OTHER not in str(error.value)


def test_no_token_a_mode_that_forbids_it_and_a_file_that_is_not_there_are_told(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError, match=r"10\.0\.0\.1:6379 requires a token, and there is none"):
        use_token_if_asked(HEAD)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/such/file")
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH=/no/such/file cannot be read: "):
        use_token_if_asked(HEAD)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match="but RAY_AUTH_MODE=disabled is set here: unset it"):
        use_token_if_asked(HEAD)


def test_a_cluster_that_asks_for_no_token_is_joined_without(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_file(home / ".ray", TOKEN)
    monkeypatch.setattr(ray_token, "_ask", lambda address: None)
    use_token_if_asked(HEAD)
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_token_file_that_others_can_read_is_closed(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = in_a_file(home / ".ray", TOKEN, mode=0o644)
    assert token_place() == str(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "other users of this machine could read" in caplog.text and TOKEN not in caplog.text


def test_a_ray_of_our_own_asks_for_a_token_that_nobody_knows_and_listens_on_this_machine(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, str]] = []
    monkeypatch.setattr("ray.init", lambda **options: found.append(dict(os.environ)))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    before = dict(os.environ)
    for _ in range(2):
        start_ray(1, 2)
        assert before.items() <= os.environ.items(), "what the user set stays"
    tokens = [environment["RAY_AUTH_TOKEN"] for environment in found]
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in tokens) and len(set(tokens)) == 2
    assert {environment["RAY_AUTH_MODE"] for environment in found} == {"token"}
    assert not (home / ".ray").exists()
    assert set(ON_LOOPBACK.values()) == {"0"}
