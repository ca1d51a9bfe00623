"""Nothing outside a data or model folder is hashed, copied into a store or sent with a job."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefsweep.orchestrator.commands import cli
from prefsweep.orchestrator.execution import jobs as submitting
from prefsweep.orchestrator.state.inputs import copy, store_inputs
from prefsweep.orchestrator.state.sweep import resolve
from prefsweep.sweeps.errors import DataError, ModelError, UsageError
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.spec import DatasetText, FileText, PolicySpec
from prefsweep.workers.corpus import source_identity
from prefsweep.workers.folders import contents
from prefsweep.workers.locations import model_identity

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What was cloned: a data and model folder with files of its own, beside a private key."""
    (tmp_path / "id_rsa").write_text(KEY)
    clone = tmp_path / "clone"
    (clone / "more").mkdir(parents=True)
    for name in ("config.json", "more/rows.jsonl"):
        (clone / name).write_text("{}\n")
    return clone


def to_the_environment(folder: Path) -> None:
    (folder / "rows.txt").symlink_to("/proc/self/environ")


def to_a_key(folder: Path) -> None:
    (folder / "more" / "chat_template.jinja").symlink_to("../../id_rsa")


def to_a_folder(folder: Path) -> None:
    (folder / "all").symlink_to("more")


def to_nowhere(folder: Path) -> None:
    (folder / "gone.json").symlink_to("not-there")


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "rows.json")


HARMS = [to_the_environment, to_a_key, to_a_folder, to_nowhere, a_pipe]


@pytest.mark.parametrize("harm", HARMS)
def test_what_leads_out_of_a_folder_is_refused_before_anything_is_read(
    harm: Callable[[Path], None], folder: Path, tmp_path: Path
) -> None:
    harm(folder)
    (name,) = ({*folder.rglob("*")} - {folder / "config.json", folder / "more"}) - {
        folder / "more" / "rows.jsonl"
    }
    with pytest.raises(DataError, match=str(name)):
        source_identity(DatasetText(type="dataset", dataset=str(folder)))
    with pytest.raises(ModelError, match=rf"policy\.model: {name}"):
        model_identity(PolicySpec(model=str(folder)), "policy.model")
    with pytest.raises(DataError, match=str(name)):
        copy(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_named_file_that_is_a_link_elsewhere_has_to_be_named_itself(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "rows.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(DataError, match=rf"link to {tmp_path}/id_rsa, outside.*use that file"):
        source_identity(FileText(type="file", path=str(folder / "rows.txt")))
    (folder / "own.txt").symlink_to("more/rows.jsonl")
    assert source_identity(FileText(type="file", path=str(folder / "own.txt")))
    (folder / "environment.txt").symlink_to("/proc/self/environ")
    with pytest.raises(DataError, match="outside its folder"):
        source_identity(FileText(type="file", path=str(folder / "environment.txt")))


def test_links_inside_a_folder_are_copied_as_what_they_lead_to(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "same.jsonl").symlink_to("more/rows.jsonl")
    (tmp_path / "named").symlink_to(folder)  # what the user names may be a link
    copy(tmp_path / "named", tmp_path / "copy")
    copied = tmp_path / "copy" / "same.jsonl"
    assert copied.read_text() == "{}\n" and not copied.is_symlink()


def test_a_snapshot_of_a_hugging_face_cache_is_what_its_links_lead_to(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    blobs = tmp_path / "models--org--name" / "blobs"
    for place in (snapshot, blobs):
        place.mkdir(parents=True)
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert model_identity(PolicySpec(model=str(snapshot)), "policy.model")
    (tmp_path / "id_rsa").write_text(KEY)
    (snapshot / "rows.json").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ModelError, match="outside its folder"):
        model_identity(PolicySpec(model=str(snapshot)), "policy.model")
    (snapshot / "rows.json").unlink()
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="outside its folder"):
        model_identity(PolicySpec(model=str(snapshot)), "policy.model")


def test_names_that_begin_with_a_dot_are_left_out_and_told(folder: Path) -> None:
    before = source_identity(DatasetText(type="dataset", dataset=str(folder)))
    (folder / ".env").write_text("TOKEN=1")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").symlink_to("/etc/passwd")
    (folder / ".#rows.jsonl").symlink_to("me@host.1234")  # an editor's lock
    assert source_identity(DatasetText(type="dataset", dataset=str(folder))) == before
    assert str(contents(folder)) == "2 files, 0.0 MB (left out: .#rows.jsonl, .env, .git)"
    (folder / ".named.jsonl").write_text('{"text": "a"}\n')
    assert source_identity(FileText(type="file", path=str(folder / ".named.jsonl")))


@pytest.fixture
def overrides(folder: Path) -> list[str]:
    """A sweep that reads the folder."""
    (folder / ".env").write_text("TOKEN=1")
    lines = [f'{{"text": "text {n}"}}\n' for n in range(9)]
    (folder / "more" / "rows.jsonl").write_text("".join(lines))
    (folder / "config.json").unlink()
    return [f"prompts={{type: dataset, dataset: '{folder}', num_eval: 2}}"]


def holders(folder: Path) -> list[str]:
    """Names of what holds, or is, what stays where it is."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [f.name for f in files if f.name == ".env" or KEY in f.read_text(errors="replace")]


def test_what_is_copied_into_the_store_is_told(
    folder: Path, overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sweep = resolve(load_spec("quickstart", overrides), str(tmp_path / "store"))
    assert store_inputs(sweep.store, sweep.spec, sweep.inputs) == ["prompts.dataset"]
    told = f"prompts.dataset: copied into the store: 1 file, 0.0 MB (left out: .env) of {folder}"
    assert told in caplog.text
    assert holders(tmp_path / "store") == []
    (folder / "id_rsa").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(UsageError, match="outside its folder"):
        resolve(load_spec("quickstart", overrides), str(tmp_path / "store"))


def test_what_is_sent_with_a_job_is_told(
    folder: Path,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = tmp_path / "modules" / "liked"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("def zero(p, c): return [0.0 for _ in c]")
    (module / ".env").write_text("TOKEN=1")
    monkeypatch.syspath_prepend(str(module.parent))
    sent: list[list[str]] = []

    class Client:
        def submit_job(self, *, runtime_env: dict[str, str], **_: object) -> str:
            sent.append(holders(Path(runtime_env["working_dir"])))
            return "job"

    monkeypatch.setattr(submitting, "_client", lambda address: Client())
    reward = "reward={type: callable, function: 'liked:zero'}"
    words = ["--storage", "s3://bucket/runs", "--address", "http://head:8265", reward, *overrides]
    monkeypatch.setattr(sys, "argv", ["prefsweep", "submit", "quickstart", *words])
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert f"with the job: prompts.dataset: 1 file, 0.0 MB (left out: .env) of {folder}" in said
    assert (
        f"sent with the job: reward.function: 1 file, 0.0 MB (left out: .env) of {module}" in said
    )
    assert sent == [[]]
    (module / "data").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(SystemExit):
        cli.main()
    assert "outside its folder" in capsys.readouterr().err and len(sent) == 1
