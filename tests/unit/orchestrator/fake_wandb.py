"""A W&B that misbehaves as a test asks: it raises, or it waits."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest


class Broken(Exception):
    """What the fake W&B raises."""


class FakeWandb(ModuleType):
    """A W&B whose `broken` call raises and whose `slow` call waits for `released`."""

    def __init__(self, broken: str = "", slow: str = "") -> None:
        super().__init__("wandb")
        self.broken, self.slow = broken, slow
        self.error: type[Exception] = Broken
        self.earlier: dict[str, float] = {}
        """The summary that the server has of a run from before."""
        self.released = threading.Event()
        self.calls: list[str] = []
        self.modes: list[str] = []
        self.rows: list[dict[str, object]] = []
        self.Settings = type("Settings", (), {"model_fields": {}})

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.slow:
            self.released.wait(10)
        if name == self.broken:
            raise self.error(f"{name} is broken\nand says so at length")

    def init(self, **arguments: str) -> SimpleNamespace:
        self.modes.append(arguments["mode"])
        self.call("init")
        return SimpleNamespace(
            define_metric=lambda *a, **k: self.call("define_metric"),
            log=self.log,
            resumed=bool(self.earlier),
            summary=SimpleNamespace(
                update=lambda values: self.call("summary"), get=self.earlier.get
            ),
            finish=lambda exit_code: self.call("finish"),
            log_artifact=lambda artifact: self.call("log_artifact"),
        )

    def log(self, row: dict[str, object]) -> None:
        self.rows.append(row)
        self.call("log")

    def Table(self, **arguments: object) -> str:
        self.call("Table")
        return "table"

    def Plotly(self, figure: object) -> str:
        self.call("Plotly")
        return "plot"

    def Artifact(self, name: str, type: str) -> object:
        self.call("Artifact")
        return SimpleNamespace(add_dir=lambda path: None)

    def setup(self, settings: object) -> None:
        self.call("setup")

    def teardown(self, exit_code: int = 0) -> None:
        self.call("teardown")


def fake_wandb(monkeypatch: pytest.MonkeyPatch, broken: str = "", slow: str = "") -> FakeWandb:
    fake = FakeWandb(broken, slow)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake
