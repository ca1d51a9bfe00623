"""Metrics of the trials in, Weights & Biases runs out: the driver's mirror.

The truth is every trial's metrics.jsonl; this module only copies what it is told, one W&B run for
each trial and one for the sweep. Everything W&B does happens on one daemon thread behind a queue:
it cannot raise into the sweep, block it or ask questions. It reads nothing back and retries
nothing; where W&B fails, the mirror goes online -> offline -> disabled, each step with one warning.
"""

import configparser
import logging
import netrc
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from prefsweep.sweeps.records import EvaluationSample, Status, TrialResult
from prefsweep.sweeps.spec import WandbSpec

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]

INIT_TIMEOUT_S = 20.0
"""Longest wait for the server when a run starts; then the mirror goes offline."""
UPLOAD_TIMEOUT_S = 20.0
"""Longest wait for a run's upload when it ends; what is left stays on disk for `wandb sync`."""
FINISH_TIMEOUT_S = 60.0
"""Longest wait of `WandbMirror.finish`."""
MAX_QUEUED = 20_000
"""Jobs waiting for W&B beyond which metric records are dropped from the mirror."""

STEP = "train/global_step"
_EXIT_CODES = {Status.SUCCEEDED: 0, Status.INTERRUPTED: 255}
"""What W&B shows as finished and killed; every other status is shown as failed (1)."""


def wandb_mode(spec: WandbSpec, environ: Mapping[str, str]) -> Mode:
    """The mode to start in, without importing wandb.

    `auto` follows WANDB_MODE, else is online where an API key is found. Without a key nothing is
    online, because W&B would prompt for one.
    """
    mode = spec.mode
    if mode == "auto":
        named = environ.get("WANDB_MODE", "").lower()
        mode = {"dryrun": "offline", "run": "online"}.get(named, named)
    if mode == "disabled" or mode == "offline":
        return mode
    return "online" if _has_key(environ) else "offline"


def _has_key(environ: Mapping[str, str]) -> bool:
    """Whether W&B would find credentials: in the environment or in the netrc file of its host."""
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
    """Address of the W&B server: from the environment, W&B's settings file, or the public one."""
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
    """What the driver calls. No method raises, and none but `finish` waits."""

    def __init__(
        self, spec: WandbSpec, sweep: str, config: dict[str, object], folder: Path
    ) -> None:
        """`config` is the resolved spec; W&B's files go to `folder`/wandb."""
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
        """Open the run of a trial that runs now; a trial that was mirrored before is continued."""
        self._send(lambda writer: writer.start_trial(trial_id, name, config))

    def log(self, trial_id: str, record: Mapping[str, float | None]) -> None:
        """Mirror one record of a trial's metrics.jsonl; it has a "step"."""
        if self._jobs.qsize() >= MAX_QUEUED:
            self._num_dropped += 1
            return
        row = dict(record)
        self._send(lambda writer: writer.log(trial_id, row))

    def trial_finished(self, result: TrialResult) -> None:
        """Close the run of a trial with its final metrics and sample completions."""
        self._send(lambda writer: writer.finish_trial(result))

    def finish(self, results: list[TrialResult]) -> None:
        """Write the sweep's own run with the table of results, and close W&B; a minute at most.

        A sweep in which no trial ran has nothing to mirror, and leaves the earlier runs alone.
        """
        if self._thread is None or self._closed:
            return
        self._send(lambda writer: writer.write_sweep(results))
        self._closed = True
        self._jobs.put(None)
        self._thread.join(FINISH_TIMEOUT_S)
        if self._num_dropped:
            message = "W&B was too slow for %d metric records; metrics.jsonl has them all"
            logger.warning(message, self._num_dropped)
        if self._thread.is_alive():
            message = "W&B did not finish within %.0f s; metrics.jsonl has all it may be missing"
            logger.warning(message, FINISH_TIMEOUT_S)

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
    """The side of the mirror that talks to W&B; it lives on the mirror's thread."""

    def __init__(
        self, spec: WandbSpec, sweep: str, config: dict[str, object], folder: Path, mode: Mode
    ) -> None:
        self._spec = spec
        self._sweep = sweep
        self._config = config
        self._folder = folder
        self._mode: Mode = mode
        self._runs: dict[str, wandb.Run] = {}
        self._lost_table = False

    def do(self, job: "_Job") -> None:
        """Run a job; the border that no exception of W&B's crosses."""
        try:
            if self._mode != "disabled":
                job(self)
        except (Exception, SystemExit) as error:
            self._mode = "disabled"
            message = "W&B failed (%s) and is off from here on; metrics.jsonl has every metric"
            logger.warning(message, _one_line(error))

    def start_trial(self, trial_id: str, name: str, config: dict[str, object]) -> None:
        if trial_id in self._runs:
            return
        run = self._open(trial_id, name, "trial", {**config, "spec": self._config})
        if run is not None:
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP)
            self._runs[trial_id] = run

    def log(self, trial_id: str, record: Mapping[str, float | None]) -> None:
        run = self._runs.get(trial_id)
        row = _history_row(record)
        if run is not None and row:
            run.log(row)

    def finish_trial(self, result: TrialResult) -> None:
        if (run := self._runs.pop(result.trial_id, None)) is None:
            return
        self._log_table(run, "samples", _sample_table(result.samples))
        run.summary.update(_summary(result))
        self._close_run(run, _EXIT_CODES.get(result.status, 1))

    def write_sweep(self, results: Sequence[TrialResult]) -> None:
        if (run := self._open("results", self._sweep, "sweep", self._config)) is None:
            return
        self._log_table(run, "results", _result_table(results))
        statuses = [result.status for result in results if result.trial is not None]
        run.summary.update({f"num_{status}": statuses.count(status) for status in set(statuses)})
        self._close_run(run, 0 if set(statuses) <= {Status.SUCCEEDED} else 1)

    def close(self) -> None:
        """End what is still open (trials that were interrupted), then W&B's own process."""
        try:
            import wandb

            wandb.teardown(exit_code=_EXIT_CODES[Status.INTERRUPTED] if self._runs else 0)
        except (Exception, SystemExit) as error:
            logger.debug("W&B did not close: %s", _one_line(error))

    def _open(
        self, identity: str, name: str, job_type: str, config: dict[str, object]
    ) -> "wandb.Run | None":
        """A new W&B run. Online falls back to offline here; offline, what W&B raises is raised.

        None where the server is lost while other runs are open: until W&B's process has ended,
        and those runs with it, the failed run's id stays taken.
        """
        # Its error telemetry goes to the same server, and holds up the exit when that is dead.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(**_quiet(wandb.Settings.model_fields))
        while True:
            try:
                with _exit_hooks_kept():
                    wandb.setup(settings)
                    return wandb.init(
                        entity=self._spec.entity,
                        project=_project(self._spec, os.environ),
                        id=f"{self._sweep}-{identity}",
                        name=name,
                        group=self._sweep,
                        job_type=job_type,
                        config=_without_secrets(config),
                        dir=str(self._folder),
                        mode=self._mode,
                        resume="allow",
                        reinit="create_new",
                        settings=settings,
                    )
            except Exception as error:
                if self._mode != "online":
                    raise
                self._go_offline(_one_line(error))
                if self._runs:
                    logger.warning("%s is not mirrored; its metrics are in metrics.jsonl", name)
                    return None
                wandb.teardown()

    def _log_table(self, run: "wandb.Run", key: str, table: "_Table") -> None:
        """Online, W&B asks its server about a table at once; without an answer it is left out."""
        import wandb

        columns, *rows = table
        if not rows:
            return
        try:
            data = wandb.Table(columns=list(columns), data=list(rows), allow_mixed_types=True)
            run.log({key: data})
        except Exception as error:
            if not self._lost_table:
                logger.warning("W&B refused a table of %s (%s)", key, _one_line(error))
            self._lost_table = True

    def _close_run(self, run: "wandb.Run", exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError as error:
            if self._mode == "online":
                self._go_offline(_one_line(error))

    def _go_offline(self, why: str) -> None:
        self._mode = "offline"
        message = "W&B cannot be reached (%s); recording offline in %s, for `wandb sync`"
        logger.warning(message, why, self._folder / "wandb")


_Job = Callable[[_Writer], None]


def _quiet(known: Mapping[str, object]) -> dict[str, Any]:
    """Settings, of those W&B knows, of a run that prints, asks, measures and copies nothing."""
    wanted = {
        "silent": True,
        "console": "off",
        "relogin": False,
        "login_timeout": 1.0,
        "init_timeout": INIT_TIMEOUT_S,
        "finish_timeout": UPLOAD_TIMEOUT_S,
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
    """W&B puts its own sys.exit and sys.excepthook in place; the process keeps those it had."""
    kept = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = kept


def _project(spec: WandbSpec, environ: Mapping[str, str]) -> str:
    """The project of the spec; WANDB_PROJECT replaces the default one."""
    default = WandbSpec.model_fields["project"].default
    return environ.get("WANDB_PROJECT", default) if spec.project == default else spec.project


def _history_row(record: Mapping[str, float | None]) -> dict[str, float]:
    """A record of metrics.jsonl by W&B's names: step is the x-axis, the rest is train/ or eval/."""
    row: dict[str, float] = {}
    for key, value in record.items():
        if value is None:
            continue
        name = key if key.startswith(("train/", "eval/")) else f"train/{key}"
        row[STEP if key == "step" else name] = value
    return row


def _summary(result: TrialResult) -> dict[str, float | str]:
    """Final metrics, the training time and, for a failed trial, why it failed."""
    summary: dict[str, float | str] = {
        key: value for key, value in result.metrics.items() if value is not None
    }
    if result.train_seconds is not None:
        summary["train_seconds"] = result.train_seconds
    summary["status"] = str(result.status)
    if result.failure is not None:
        summary["error"] = result.failure.message
    return summary


_Table = list[list[Any]]
"""Header first, then the rows."""


def _sample_table(samples: Sequence[EvaluationSample]) -> _Table:
    rows = [[sample.prompt, sample.text, sample.reward, sample.kl] for sample in samples]
    return [["prompt", "completion", "reward", "kl"], *rows]


_GRID_COLUMNS = ("loss_type", "f_divergence_type", "alpha", "beta", "learning_rate", "seed")


def _result_table(results: Sequence[TrialResult]) -> _Table:
    """One row for every result, the untrained policy included; all metrics that any of them has."""
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = [
        [
            *(result.trial_id, result.name, str(result.status)),
            *(getattr(result.trial, column, None) for column in _GRID_COLUMNS),
            *(result.metrics.get(name) for name in metrics),
            *(result.train_seconds, result.failure.message if result.failure else None),
        ]
        for result in results
    ]
    ends = ["train_seconds", "error"]
    return [["trial_id", "name", "status", *_GRID_COLUMNS, *metrics, *ends], *rows]


_SECRET_KEY = re.compile(r"(^|[_.-])(token|api_?key|password|secret|secret_key|access_key)$", re.I)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def _without_secrets(value: object) -> Any:
    """`value`, JSON-like, with the values of secret keys and the logins in URLs blotted out."""
    if isinstance(value, Mapping):
        return {
            key: "***" if _SECRET_KEY.search(str(key)) and item else _without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    return _URL_LOGIN.sub("***", value) if isinstance(value, str) else value


def _one_line(error: BaseException) -> str:
    """An error as a short line, for a warning."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
