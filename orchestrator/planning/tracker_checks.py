"""The doctor's checks of trackers. None is an error, because no tracker can stop a run."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import util

from prefsweep.orchestrator.planning.checks import Check, Level, Line
from prefsweep.sweeps.spec import SweepSpec, TrackingSpec, WandbSpec

SERVER_TIMEOUT_S = 5.0
"""Timeout for a response of the W&B server."""


def tracker_checks(spec: SweepSpec | None) -> list[Check]:
    """The checks of the trackers that a spec names; of W&B without one."""
    tracking = TrackingSpec() if spec is None else spec.tracking
    return [
        Check("W&B", lambda: [wandb(tracking.wandb)]),
        Check("trackers", lambda: trackers(tracking)),
    ]


def wandb(spec: WandbSpec) -> Line:
    """Whether W&B can be reached."""
    from prefsweep.orchestrator.tracking.wandb import server_url, wandb_mode

    mode = wandb_mode(spec, os.environ)
    if mode == "disabled":
        return Line("W&B", Level.OK, "disabled")
    if mode == "offline":
        wanted = spec.mode == "online"
        remedy = "set WANDB_API_KEY, or `wandb login`, to record online"
        found = "recorded offline" + (
            ", as configured" if spec.mode == "offline" else ": no API key"
        )
        return Line("W&B", Level.WARNING if wanted else Level.OK, found, remedy if wanted else "")
    url = server_url(os.environ)
    try:
        urllib.request.urlopen(url, timeout=SERVER_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass  # it responds
    except OSError as error:
        remedy = "runs are recorded offline; upload them later with `wandb sync`"
        return Line("W&B", Level.WARNING, f"{url} cannot be reached: {error}", remedy)
    return Line("W&B", Level.OK, f"online, {url} responds")


def trackers(spec: TrackingSpec) -> Iterator[Line]:
    """Whether the libraries of the other trackers are installed."""
    wanted = {"TensorBoard": spec.tensorboard, "MLflow": spec.mlflow is not None}
    for title, module in (("TensorBoard", "tensorboardX"), ("MLflow", "mlflow")):
        if wanted[title] and util.find_spec(module) is None:
            found = f"the package {module} is missing; nothing is sent there"
            yield Line(title, Level.WARNING, found, f"pip install {module}")
        elif wanted[title]:
            yield Line(title, Level.OK, "installed")
