"""No network is an answer like others: what is cached is used, else the message says what to do."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

from prefsweep.sweeps.errors import DataError, ModelError
from prefsweep.sweeps.spec import DatasetText, ModelSection
from prefsweep.workers import locations
from prefsweep.workers.corpus import source_identity
from prefsweep.workers.locations import model_identity

COMMIT = "c0ffee" + "0" * 34


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is wanted, but no host of that name is known."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise HTTPError("[Errno -2] Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(HfApi, "dataset_info", unreachable)


def test_a_model_that_is_not_cached_is_refused_with_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"policy\.model=owner/name: .*Name or service not known"):
        model_identity(ModelSection(model="owner/name"), "policy.model")


def test_a_model_that_is_cached_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cached = str(tmp_path / COMMIT / "config.json")
    monkeypatch.setattr(locations, "try_to_load_from_cache", lambda *args, **kwargs: cached)
    identity = model_identity(ModelSection(model="owner/name"), "policy.model")
    assert identity == f"owner/name@{COMMIT}"


def test_a_dataset_that_is_not_cached_is_refused_with_what_to_do() -> None:
    corpus = DatasetText(type="dataset", dataset="owner/texts", column="text")
    with pytest.raises(DataError, match="Name or service not known"):
        source_identity(corpus)
