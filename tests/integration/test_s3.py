"""A store on S3 (moto's server): it works as on a disk, and what the server says is told."""

import pytest

from prefsweep.orchestrator.store import retry
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import StoreError


def test_folders_logs_and_names_work_as_on_a_disk(s3: str) -> None:
    store = Store(s3)
    assert store.names("nothing/here") == []
    assert store.read("nothing/here") is None
    store.delete("nothing/here")
    for number in range(3):
        store.append("log/lines.jsonl", b"%d\n" % number)
    assert Store(s3).read("log/lines.jsonl") == b"0\n1\n2\n"
    store.write("log/lines.jsonl", b"kept\n")
    store.append("log/lines.jsonl", b"added\n")
    assert store.read("log/lines.jsonl") == b"kept\nadded\n"
    store.write("log/deep/file", b"")
    assert store.names("log") == ["deep", "lines.jsonl"]
    store.delete("log")
    assert store.names("log") == []


def test_what_s3_says_is_told_with_the_place(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", (0.0,))
    nowhere = Store(s3.replace("bucket", "no-such-bucket"))
    with pytest.raises(StoreError, match=r"no-such-bucket/.* cannot be written: .*NO_SUCH_BUCKET"):
        nowhere.write("file", b"data")
