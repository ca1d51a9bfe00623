"""Writes the report of a sweep into the store; skips it if it is up to date.

The store also holds a hash of the report's inputs: spec, artefacts, trials and the code of the
report. Only small files are hashed, so that this is fast for a thousand trials.
"""

import hashlib
from pathlib import Path

from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep
from prefsweep.orchestrator.store.store import MANIFEST, environment
from prefsweep.sweeps.identity import canonical_json

FILES = ("index.html", "trials.csv", "summary.md", "samples.parquet")
_ORCHESTRATOR = Path(__file__).parents[1]
CODE = tuple(_ORCHESTRATOR / name for name in ("report", "results", "text.py"))
"""Code of the report; hashed as files, because importing it takes a second."""
SHOWN = "shown.sha256"
"""File with the hash of the report's inputs."""


def is_drawn(sweep: Sweep) -> bool:
    """Whether the stored report is up to date."""
    name = sweep.spec.name
    there = set(sweep.store.names(sweep.store.sweep(name, "report")))
    if not there.issuperset(FILES):
        return False
    return sweep.store.read_record(sweep.store.sweep(name, "report", SHOWN)) == _identity(sweep)


def publish_report(sweep: Sweep) -> None:
    """Write the report of the current results into the sweep's folder."""
    from prefsweep.orchestrator.report.write import write_report

    identity = _identity(sweep)  # taken before: a change while drawing makes it out of date
    with sweep.store.staging() as folder:
        write_report(read_results(sweep), folder)
        for file in sorted(folder.iterdir()):
            sweep.store.upload(file, sweep.store.sweep(sweep.spec.name, "report", file.name))
    sweep.store.write(sweep.store.sweep(sweep.spec.name, "report", SHOWN), identity)


def report_path(sweep: Sweep) -> str:
    """Path of the report's page in the store."""
    return sweep.store.sweep(sweep.spec.name, "report", "index.html")


def _identity(sweep: Sweep) -> bytes:
    """SHA-256, in hex, of all inputs of the report."""
    store, digest = sweep.store, hashlib.sha256()
    paths = [f"{sweep.path(stage)}/{MANIFEST}" for stage in sweep.stages]
    paths.append(f"{sweep.evaluation_path(UNTRAINED)}/{MANIFEST}")
    for trial in sweep.trials:
        paths += [
            store.trial(trial.trial_id, "status.json"),
            store.trial(trial.trial_id, "weights", MANIFEST),
            f"{sweep.evaluation_path(trial.trial_id)}/{MANIFEST}",
        ]
    shown = [sweep.spec.model_dump_json(), canonical_json(environment())]
    parts = [*(text.encode() for text in shown), *(store.read_record(path) for path in paths)]
    code = [file for place in CODE for file in (place, *sorted(place.rglob("*")))]
    parts += [f.read_bytes() for f in code if f.is_file() and f.suffix != ".pyc"]
    for part in parts:
        digest.update(b"-" if part is None else hashlib.sha256(part).digest())
    return digest.hexdigest().encode()
