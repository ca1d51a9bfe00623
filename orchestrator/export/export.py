"""Exports a finished trial or the preference pairs of a sweep to a folder and to the hub.

A model folder loads with AutoPeftModelForCausalLM or AutoModelForCausalLM, a dataset folder with
datasets.load_dataset; each has a card. The folder is complete when it appears: it is written beside
the target and renamed. An earlier export of the same trial or pairs is replaced. The store is not
changed.
"""

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefsweep.orchestrator.export.cards import (
    Form,
    ModelFacts,
    PairFacts,
    dataset_card,
    model_card,
)
from prefsweep.orchestrator.export.hub import ADAPTER_CONFIG, check_push, name_base, push
from prefsweep.orchestrator.state.hints import hint
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep, Trial, find_trial
from prefsweep.orchestrator.state.trial_record import trial_status
from prefsweep.orchestrator.store.store import Manifest
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.records import Metrics, Status

MARK = "prefsweep.json"
"""File that identifies an export; only a folder with it is replaced."""
DATASET_COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "chosen_score",
    "rejected_score",
    "prompt_id",
    "pair_id",
)


@dataclass(frozen=True)
class ExportRequest:
    """The options of an `export` command."""

    trial: str | None = None
    """Trial name, id, or unique id prefix."""
    dataset: bool = False
    merge: bool = False
    repo: str | None = None
    """Hub id to push to."""
    private: bool = False


@dataclass(frozen=True)
class Exported:
    """Where the export was written and pushed to."""

    folder: Path
    url: str | None = None


def export(sweep: Sweep, wanted: ExportRequest, target: Path) -> Exported:
    """Write the folder and, if `wanted.repo` is set, push it.

    Raises UsageError if the options cannot be satisfied, SweepError if the hub fails. A folder that
    was written is kept in both cases.
    """
    _check_options(wanted)
    if wanted.repo is not None:
        check_push(wanted.repo)
    target = target.expanduser().resolve()
    if wanted.dataset:
        export_dataset(sweep, target, repo=wanted.repo)
    else:
        trial = find_trial(sweep, wanted.trial or "")
        export_model(sweep, trial, target, merge=wanted.merge, repo=wanted.repo)
    if wanted.repo is None:
        return Exported(target)
    kind = "dataset" if wanted.dataset else "model"
    return Exported(target, push(target, wanted.repo, kind, private=wanted.private))


def _check_options(wanted: ExportRequest) -> None:
    if wanted.dataset == (wanted.trial is not None):
        raise UsageError("export: name either a trial or --dataset, as in `export NAME TRIAL`")
    if wanted.dataset and wanted.merge:
        raise UsageError("export: --merge is for models; --dataset has nothing to merge")
    if wanted.private and wanted.repo is None:
        raise UsageError("export: --private needs --push-to-hub")


# --- models --------------------------------------------------------------------------------------


def export_model(
    sweep: Sweep, trial: Trial, target: Path, *, merge: bool = False, repo: str | None = None
) -> None:
    """Write a finished trial's model with tokenizer and card to `target`. Raises UsageError."""
    status = trial_status(sweep, trial)
    if status.status != Status.SUCCEEDED:
        why = f" ({status.failure.message})" if status.failure else ""
        raise UsageError(
            f"trial {trial.name} is {status.status}{why}; only a finished trial can be exported. "
            f"{hint('resume', sweep.spec.name, storage=sweep.storage)} finishes the sweep"
        )
    manifest = sweep.store.manifest(sweep.store.trial(trial.trial_id, "weights"))
    assert manifest is not None
    form = _form(trial, manifest, merge)
    mark = {"export": "model", "trial_id": trial.trial_id, "form": form}
    with _replaced_folder(target, mark) as folder:
        _write_model(sweep, trial, manifest, form, folder, target)
        facts = _model_facts(sweep, trial, manifest, form, repo)
        (folder / "README.md").write_text(model_card(facts), encoding="utf-8")


def _form(trial: Trial, manifest: Manifest, merge: bool) -> Form:
    if ADAPTER_CONFIG in manifest.files:
        return "merged" if merge else "adapter"
    if merge:
        raise UsageError(
            f"trial {trial.name} trained all weights: there is no adapter to merge. "
            "Leave out --merge"
        )
    return "full"


def _write_model(
    sweep: Sweep, trial: Trial, manifest: Manifest, form: Form, folder: Path, target: Path
) -> None:
    """Write weights and tokenizer, and the base of an adapter if it is not on the hub."""
    import torch

    from prefsweep.orchestrator.tasks.worker import set_up_worker
    from prefsweep.workers.models import load_policy, load_tokenizer, load_trained

    set_up_worker(sweep.spec.resources.threads_per_worker)
    weights = sweep.store.fetch(sweep.store.trial(trial.trial_id, "weights"))
    source = sweep.policy_source()
    if form == "merged":
        policy: Any = load_trained(source, weights).float()
        policy.merge_and_unload().to(getattr(torch, source.dtype)).save_pretrained(folder)
    else:
        for name in manifest.files.keys() - {"README.md"}:  # replaced by our card
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(weights / name, folder / name)
    tokenizer = load_tokenizer(source)
    tokenizer.save_pretrained(folder)
    if form != "adapter":
        return
    hub = _hub_base(sweep)
    if hub is None:
        load_policy(source).save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
    # peft resolves no relative path
    name_base(folder / ADAPTER_CONFIG, *(hub or (str(target / "base"), None)))


def _hub_base(sweep: Sweep) -> tuple[str, str] | None:
    """Hub id and commit of the trained policy; None if it is a folder or this sweep made it."""
    return None if sweep.made["policy"] else _hub_origin(sweep)


def _hub_origin(sweep: Sweep) -> tuple[str, str] | None:
    """Hub id and commit of the model that the policy starts from; None if it is not on the hub."""
    from prefsweep.workers.locations import BUILTIN

    model = sweep.spec.policy.model
    name, _, commit = sweep.inputs.policy.rpartition("@")
    return (model, commit) if name == model and not model.startswith(BUILTIN) else None


def _model_facts(
    sweep: Sweep, trial: Trial, manifest: Manifest, form: Form, repo: str | None
) -> ModelFacts:
    origin = _hub_origin(sweep)
    evaluation = sweep.store.manifest(sweep.evaluation_path(trial.trial_id))
    return ModelFacts(
        spec=sweep.spec,
        trial_id=trial.trial_id,
        name=trial.name,
        trial=trial.spec,
        form=form,
        hub_base=_hub_base(sweep),
        base_id=None if origin is None else origin[0],
        pairs=_pair_facts(sweep),
        num_completions=0 if evaluation is None else evaluation.rows,
        metrics=_metrics(sweep, trial.trial_id),
        untrained=_metrics(sweep, UNTRAINED),
        environment=manifest.environment,
        repo=repo,
    )


def _metrics(sweep: Sweep, trial_id: str) -> Metrics:
    return sweep.store.read_json(f"{sweep.evaluation_path(trial_id)}/metrics.json") or {}


# --- preference data -----------------------------------------------------------------------------


def export_dataset(sweep: Sweep, target: Path, *, repo: str | None = None) -> None:
    """Write the sweep's pairs as train and test parquet with a card. Raises UsageError."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    manifest = sweep.store.manifest(sweep.path("pairs"))
    if manifest is None:
        resume = hint("resume", sweep.spec.name, storage=sweep.storage)
        raise UsageError(f"the pairs of {sweep.spec.name} are pending; {resume} makes them")
    pairs = pq.read_table(sweep.store.fetch(sweep.path("pairs")) / "pairs.parquet")
    with _replaced_folder(target, {"export": "dataset", "sweep": sweep.spec.name}) as folder:
        (folder / "data").mkdir()
        for split in ("train", "test"):
            rows = pairs.filter(pc.field("split") == split).select(list(DATASET_COLUMNS))
            if rows.num_rows:
                pq.write_table(rows, folder / "data" / f"{split}-00000.parquet")
        card = dataset_card(sweep.spec, _pair_facts(sweep), manifest.environment, repo)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _pair_facts(sweep: Sweep) -> PairFacts:
    import pyarrow.parquet as pq

    file = sweep.store.fetch(sweep.path("pairs")) / "pairs.parquet"
    columns = pq.read_table(file, columns=["split", "prompt_id"]).to_pydict()
    num_test = columns["split"].count("test")
    num_prompts = len(set(columns["prompt_id"]))
    return PairFacts(
        len(columns["split"]) - num_test, num_test, num_prompts, list(_hub_datasets(sweep))
    )


def _hub_datasets(sweep: Sweep) -> Iterator[str]:
    """Hub ids of the datasets that the sweep reads; a local folder may have the same name."""
    spec, inputs = sweep.spec, sweep.inputs
    corpus = spec.policy.sft and spec.policy.sft.corpus
    sources = [
        (spec.prompts, inputs.prompts),
        (spec.entry, inputs.entry),
        (corpus, inputs.policy_corpus),
    ]
    named = [(getattr(source, "dataset", None), identity) for source, identity in sources]
    yield from dict.fromkeys(
        name for name, identity in named if name and identity.startswith(f"{name}@")
    )


# --- the folder ----------------------------------------------------------------------------------


@contextmanager
def _replaced_folder(target: Path, mark: dict[str, str]) -> Iterator[Path]:
    """Yield a new folder beside `target` that replaces it at the end, with `mark` in it."""
    _refuse_other_content(target, mark)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--to {target} cannot be written: {error}") from None
    try:
        yield aside
        document = {**mark, "files": _files(aside)}
        (aside / MARK).write_text(json.dumps(document, indent=2), encoding="utf-8")
        _take_place(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_other_content(target: Path, mark: dict[str, str]) -> None:
    """Raise UsageError unless `target` is new, empty, or an earlier export of the same thing."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"--to {target} is a file; choose a folder")
    files = _files(target)
    if not files and not any(target.iterdir()):
        return
    try:
        before = json.loads((target / MARK).read_text(encoding="utf-8"))
        kept = set(before.pop("files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"--to {target} is not empty; choose a new or empty folder") from None
    if before != mark:
        what = ", ".join(f"{key} {value}" for key, value in before.items())
        raise UsageError(f"--to {target} holds another export ({what}); choose another folder")
    others = sorted(set(files) - kept - {MARK})
    if others:
        raise UsageError(
            f"--to {target} is an earlier export, but has other files in it "
            f"({', '.join(others[:3])}); move them or choose another folder"
        )


def _take_place(aside: Path, target: Path) -> None:
    old = target.with_name(f"{aside.name}.old")
    try:
        if target.exists():
            target.rename(old)
        aside.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise UsageError(
            f"--to {target} cannot be replaced: {error}. Choose a new folder inside it"
        ) from None
    shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    return sorted(
        item.relative_to(folder).as_posix() for item in folder.rglob("*") if not item.is_dir()
    )
