"""Mirrors the metrics of trials to Weights & Biases: one run per trial and one for the sweep.

The metrics.jsonl of each trial is the source of truth. All calls to W&B run on one daemon thread
behind a queue, so W&B cannot raise into the sweep, block it or prompt. Nothing is retried: when W&B
fails, the mirror switches from online to offline, then to disabled, with one warning each.
"""

import configparser
import logging
import math
import netrc
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from prefsweep.orchestrator.text import one_line
from prefsweep.orchestrator.tracking.mirrors import FINISH_TIMEOUT_S, MAX_QUEUED, Folder
from prefsweep.orchestrator.tracking.rows import (
    STEP,
    Table,
    figures,
    grid_point_table,
    history_row,
    result_table,
    sample_table,
    summary,
    without_secrets,
)
from prefsweep.orchestrator.tracking.wandb_files import (
    artifact_name,
    move_temporary_folders,
    shortened,
)
from prefsweep.sweeps.records import Status, SweepResults, TrialResult
from prefsweep.sweeps.spec import WandbSpec

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]

INIT_TIMEOUT_S = 20.0
"""Timeout for the server when a run starts; after it, the mirror switches to offline."""
UPLOAD_TIMEOUT_S = 20.0
"""Timeout for the upload when a run ends; the rest stays on disk for `wandb sync`."""
ARTIFACTS_TIMEOUT_S = 900.0
"""Replaces UPLOAD_TIMEOUT_S and FINISH_TIMEOUT_S if artifacts, which may be large, are uploaded."""

_EXIT_CODES = {Status.SUCCEEDED: 0, Status.INTERRUPTED: 255}
"""Exit codes that W&B shows as finished and killed; any other status is 1, failed."""


def wandb_mode(spec: WandbSpec, environ: Mapping[str, str]) -> Mode:
    """The mode to start in, without importing wandb.

    `auto` follows WANDB_MODE or, if unset, is online if there is an API key. Without a key the mode
    is never online, because W&B would prompt for one.
    """
    mode = spec.mode
    if mode == "auto":
        named = environ.get("WANDB_MODE", "").lower()
        mode = {"dryrun": "offline", "run": "online"}.get(named, named)
    if mode == "disabled" or mode == "offline":
        return mode
    return "online" if _has_key(environ) else "offline"


def _has_key(environ: Mapping[str, str]) -> bool:
    """Whether W&B has credentials in the environment or in the netrc file."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path(environ.get("HOME", "~")).expanduser()
    paths = [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for path in paths:
        try:
            entry = netrc.netrc(path).authenticators(urlsplit(server_url(environ)).netloc)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if entry and entry[2]:
            return True
    return False


def server_url(environ: Mapping[str, str]) -> str:
    """URL of the W&B server, from the environment, W&B's settings file, or the public default."""
    if url := environ.get("WANDB_BASE_URL"):
        return url
    home = Path(environ.get("HOME", "~")).expanduser()
    folder = Path(environ.get("WANDB_CONFIG_DIR", home / ".config" / "wandb"))
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(folder / "settings")
    except (configparser.Error, UnicodeDecodeError, OSError):
        settings.clear()
    return settings.get("default", "base_url", fallback="https://api.wandb.ai")


class WandbMirror:
    """The interface for the driver. No method raises; only `finish` blocks."""

    def __init__(
        self, spec: WandbSpec, sweep: str, config: dict[str, object], folder: Path
    ) -> None:
        """`config` is the resolved spec; W&B's files go to `folder`/wandb."""
        self._spec = spec
        self.mode: Mode = wandb_mode(spec, os.environ)
        if spec.mode == "online" and self.mode == "offline":
            message = "tracking.wandb.mode is online, but there is no W&B API key; %s"
            logger.warning(message, "recording offline (set WANDB_API_KEY, or `wandb login`)")
        self._writer = _Writer(spec, sweep, config, folder, self.mode)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._num_dropped = 0
        self._closed = False

    def trial_started(self, trial_id: str, name: str, config: dict[str, object]) -> None:
        """Start the W&B run of a trial, or continue it if there is one."""
        self._send(lambda writer: writer.start_trial(trial_id, name, config))

    def log(self, trial_id: str, record: Mapping[str, float | None]) -> None:
        """Mirror one record of a trial's metrics.jsonl; it has a "step"."""
        if self._jobs.qsize() >= MAX_QUEUED:
            self._num_dropped += 1
            return
        row = dict(record)
        self._send(lambda writer: writer.log(trial_id, row))

    def trial_finished(self, result: TrialResult, weights: Folder | None = None) -> None:
        """End the run of a trial with its final metrics, its samples and, if given, its weights."""
        self._send(lambda writer: writer.finish_trial(result, weights))

    def finish(self, results: SweepResults, pairs: Folder | None = None) -> None:
        """Write the sweep's own run with tables and plots, and close W&B.

        Takes at most FINISH_TIMEOUT_S, or ARTIFACTS_TIMEOUT_S with artifacts. Does nothing if no
        trial has run.
        """
        if self._thread is None or self._closed:
            return
        self._send(lambda writer: writer.write_sweep(results, pairs))
        self._closed = True
        self._jobs.put(None)
        timeout_s = ARTIFACTS_TIMEOUT_S if self._spec.log_artifacts else FINISH_TIMEOUT_S
        self._thread.join(timeout_s)
        if self._num_dropped:
            message = "W&B was too slow and missed %d metric records; metrics.jsonl has all of them"
            logger.warning(message, self._num_dropped)
        if self._thread.is_alive():
            message = "W&B did not finish within %.0f s; metrics.jsonl has what it may miss"
            logger.warning(message, timeout_s)

    def _send(self, job: "_Job") -> None:
        if self.mode == "disabled" or self._closed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._writer.do(job)
        self._writer.close()


class _Writer:
    """Makes all calls to W&B, on the mirror's thread."""

    def __init__(
        self, spec: WandbSpec, sweep: str, config: dict[str, object], folder: Path, mode: Mode
    ) -> None:
        self._spec = spec
        self._sweep = sweep
        self._config = config
        self._folder = folder
        self._mode: Mode = mode
        self._runs: dict[str, wandb.Run] = {}
        self._known: dict[str, float] = {}
        """Trial -> the last step that the server has from an earlier driver."""
        self._lost_table = False

    def do(self, job: "_Job") -> None:
        """Run a job. Catches every exception of W&B and disables the mirror."""
        try:
            if self._mode != "disabled":
                job(self)
        except (Exception, SystemExit) as error:
            self._mode = "disabled"
            message = "W&B failed (%s) and is disabled for this run; metrics.jsonl has every metric"
            logger.warning(message, _reason(error))

    def start_trial(self, trial_id: str, name: str, config: dict[str, object]) -> None:
        if trial_id in self._runs:
            return
        run = self._open(trial_id, name, "trial", {**config, "spec": self._config})
        if run is not None:
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP)
            self._runs[trial_id] = run
            self._known[trial_id] = _known_step(run)

    def log(self, trial_id: str, record: Mapping[str, float | None]) -> None:
        run = self._runs.get(trial_id)
        row = history_row(record)
        if run is not None and row and row.get(STEP, math.inf) > self._known[trial_id]:
            run.log(row)

    def finish_trial(self, result: TrialResult, weights: Folder | None) -> None:
        if (run := self._runs.pop(result.trial_id, None)) is None:
            return
        self._log_table(run, "samples", sample_table(result.samples))
        run.summary.update(summary(result))
        if weights is not None and result.status is Status.SUCCEEDED:
            self._log_artifact(run, f"{self._sweep}-{result.name}", "model", weights)
        self._close_run(run, _EXIT_CODES.get(result.status, 1))

    def write_sweep(self, results: SweepResults, pairs: Folder | None) -> None:
        if (run := self._open("results", self._sweep, "sweep", self._config)) is None:
            return
        rows = results.results
        self._log_table(run, "results", result_table(rows))
        self._log_table(run, "grid_points", grid_point_table(results))
        self._log_figures(run, results)
        if pairs is not None:
            self._log_artifact(run, f"{self._sweep}-pairs", "dataset", pairs)
        statuses = [result.status for result in rows if result.trial is not None]
        run.summary.update({f"num_{status}": statuses.count(status) for status in set(statuses)})
        self._close_run(run, 0 if set(statuses) <= {Status.SUCCEEDED} else 1)

    def close(self) -> None:
        """End the runs that are still open, of interrupted trials, and W&B's own process."""
        try:
            import wandb

            wandb.teardown(exit_code=_EXIT_CODES[Status.INTERRUPTED] if self._runs else 0)
        except (Exception, SystemExit) as error:
            logger.debug("W&B did not close: %s", _reason(error))

    def _open(
        self, identity: str, name: str, job_type: str, config: dict[str, object]
    ) -> "wandb.Run | None":
        """Open a W&B run. If the server fails, switch to offline; raises if that fails too.

        Returns None if the server fails while other runs are open: W&B keeps the id of the failed
        run reserved until its process, and the open runs with it, has ended.
        """
        # Its error telemetry goes to the same server, and holds up the exit when that is dead.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        move_temporary_folders()
        self._folder.mkdir(parents=True, exist_ok=True)
        upload_s = ARTIFACTS_TIMEOUT_S if self._spec.log_artifacts else UPLOAD_TIMEOUT_S
        settings = wandb.Settings(**_quiet(wandb.Settings.model_fields, upload_s))
        while True:
            try:
                with _exit_hooks_kept():
                    wandb.setup(settings)
                    return wandb.init(
                        entity=self._spec.entity,
                        project=_project(self._spec, os.environ),
                        id=f"{self._sweep}-{identity}",
                        name=shortened(name),
                        group=self._sweep,
                        job_type=job_type,
                        config=without_secrets(config),
                        dir=str(self._folder),
                        mode=self._mode,
                        resume="allow",
                        reinit="create_new",
                        settings=settings,
                    )
            except Exception as error:
                if self._mode != "online":
                    raise
                self._go_offline(_reason(error))
                if self._runs:
                    logger.warning("%s is not mirrored; its metrics are in metrics.jsonl", name)
                    return None
                wandb.teardown()

    def _log_table(self, run: "wandb.Run", key: str, table: Table) -> None:
        """Log a table. Online, W&B contacts its server; if that fails, the table is skipped."""
        import wandb

        columns, *rows = table
        if not rows:
            return
        try:
            data = wandb.Table(columns=list(columns), data=list(rows), allow_mixed_types=True)
            run.log({key: data})
        except Exception as error:
            if not self._lost_table:
                logger.warning("W&B refused a table of %s (%s)", key, _reason(error))
            self._lost_table = True

    def _log_figures(self, run: "wandb.Run", results: SweepResults) -> None:
        """Log the report's plots; if one fails, all plots are skipped."""
        import wandb

        try:
            plots = {name: wandb.Plotly(figure) for name, figure in figures(results)}
            if plots:
                run.log(plots)
        except Exception as error:
            logger.warning("the plots were not logged to W&B (%s)", _reason(error))

    def _log_artifact(self, run: "wandb.Run", name: str, kind: str, folder: Folder) -> None:
        """Log a folder as a W&B artifact; if it fails, it is skipped."""
        import wandb

        try:
            artifact = wandb.Artifact(artifact_name(name), type=kind)
            artifact.add_dir(str(folder()))
            run.log_artifact(artifact)
        except Exception as error:
            logger.warning("artifact %s was not logged to W&B (%s)", name, _reason(error))

    def _close_run(self, run: "wandb.Run", exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError as error:
            if self._mode == "online":
                self._go_offline(_reason(error))

    def _go_offline(self, why: str) -> None:
        self._mode = "offline"
        message = "W&B cannot be reached (%s); recording offline in %s, for `wandb sync`"
        logger.warning(message, why, self._folder / "wandb")


_Job = Callable[[_Writer], None]


def _quiet(known: Mapping[str, object], upload_s: float) -> dict[str, Any]:
    """Settings of a run that prints, prompts, measures and copies nothing, if W&B knows them."""
    wanted = {
        "silent": True,
        "console": "off",
        "relogin": False,
        "login_timeout": 1.0,
        "init_timeout": INIT_TIMEOUT_S,
        "finish_timeout": upload_s,
        "finish_timeout_raises": True,
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "symlink": False,
        "x_save_requirements": False,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
    }
    return {key: value for key, value in wanted.items() if key in known}


@contextmanager
def _exit_hooks_kept() -> Iterator[None]:
    """Restore sys.exit and sys.excepthook, which W&B replaces."""
    kept = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = kept


def _project(spec: WandbSpec, environ: Mapping[str, str]) -> str:
    """The project of the spec; WANDB_PROJECT overrides the default."""
    default = WandbSpec.model_fields["project"].default
    return environ.get("WANDB_PROJECT", default) if spec.project == default else spec.project


def _known_step(run: "wandb.Run") -> float:
    """The last step of a run that is continued online; -inf for a new or offline run."""
    step = run.summary.get(STEP) if run.resumed else None
    return float(step) if isinstance(step, int | float) else -math.inf


def _reason(error: BaseException) -> str:
    """An error as one short line."""
    text = one_line(str(error))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
