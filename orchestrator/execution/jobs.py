"""`submit`: runs a sweep as a Ray job, with prefsweep's code, the spec and its local files.

The job is `prefsweep run` on the cluster's head. Its working folder contains all that is sent, so
prefsweep need not be installed there. The store is only named, not sent, and secrets come from the
nodes' own environment.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prefsweep.orchestrator.execution.job import Job
from prefsweep.orchestrator.execution.package import build_package
from prefsweep.orchestrator.execution.ray_session import worker_environment
from prefsweep.orchestrator.execution.ray_token import enable_token, refusal
from prefsweep.orchestrator.state.command import COMMAND_VARIABLE, typed_command
from prefsweep.orchestrator.state.inputs import absent_inputs, copy, local_inputs, with_inputs
from prefsweep.orchestrator.store.credentials import refuse_credentials
from prefsweep.orchestrator.store.scratch import scratch_folder, scratch_home
from prefsweep.sweeps.errors import ClusterError, UsageError
from prefsweep.sweeps.spec import SweepSpec

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

log = logging.getLogger(__name__)

SPEC_FILE = "sweep.json"
_NO_CLIENT = "submit needs Ray's job client: pip install 'ray[default]'"


def submit(
    spec: SweepSpec,
    address: str,
    storage: str,
    arguments: list[str],
    tell: Callable[[str], None] = log.info,
) -> Job:
    """Send a sweep to the cluster whose dashboard is at `address`, to run with `arguments`.

    Prints a line for each of the user's files and folders that is sent.

    Raises UsageError for a relative storage or one with credentials in it, and ClusterError.
    """
    refuse_credentials(storage)
    if "://" not in storage and not Path(storage).is_absolute():
        raise UsageError(
            f"--storage {storage} is a relative path, which the cluster cannot resolve; use a "
            "URI such as s3://bucket/prefix, or the full path of a folder that all nodes share"
        )
    if not address.startswith(("http://", "https://")):
        raise UsageError(
            f"--address {address} is not a URL; submit needs the address of the cluster's "
            "dashboard, http://HEAD:8265"
        )
    _look_for_inputs(spec)
    command = ["python", "-m", "prefsweep.orchestrator.commands.cli", "run", SPEC_FILE]
    command += ["--storage", storage, *arguments]
    with scratch_folder(scratch_home()) as folder:
        sent = build_package(folder, spec)
        document, files = _sent_spec(spec, folder)
        (folder / SPEC_FILE).write_text(document, encoding="utf-8")
        for line in (*sent, *files):
            tell(f"sent with the job: {line}")
        settings = worker_environment(spec.resources.threads_per_worker, os.environ)
        settings[COMMAND_VARIABLE] = typed_command(sys.argv, os.environ)
        client = _client(address)
        runtime_env = {"working_dir": str(folder), "env_vars": settings}
        from ray.exceptions import RayError

        try:
            job_id = client.submit_job(
                entrypoint=_shell(command),
                runtime_env=runtime_env,
                metadata={"prefsweep": spec.name},
            )
        except (OSError, RuntimeError, ValueError, RayError) as error:
            remedy = ""
            if "exceeds" in str(error):
                remedy = ". Models this large cannot be sent: use one on the hub or a shared disk"
            message = f"--address {address}: the job was not accepted: {error}{remedy}"
            raise ClusterError(message) from None
    return Job(client, job_id)


def _look_for_inputs(spec: SweepSpec) -> None:
    """Warn of absolute paths that do not exist here; raise UsageError for relative ones."""
    for field, path in absent_inputs(spec).items():
        if not path.startswith(("/", "~")):
            raise UsageError(f"{field}={path}: there is no such file or folder to send")
        log.warning("%s=%s is not on this machine; it must exist on the cluster", field, path)


def _client(address: str) -> "JobSubmissionClient":
    try:
        from ray.exceptions import AuthenticationError, RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UsageError(_NO_CLIENT) from None
    logging.getLogger("ray").setLevel(logging.WARNING)  # do not log uploads and closed connections
    try:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError:  # Ray sends the token only if its mode is set
            if not enable_token():
                raise
            return JobSubmissionClient(address)
    except AuthenticationError:
        raise ClusterError(refusal(f"--address {address}")) from None
    except RuntimeError as error:
        if "ray[default]" in str(error):
            raise UsageError(_NO_CLIENT) from None
        raise ClusterError(f"--address {address}: {error}") from None
    except (OSError, ValueError, RayError) as error:
        raise ClusterError(
            f"--address {address}: no Ray dashboard answers there ({error}); use the address of "
            "the dashboard, http://HEAD:8265"
        ) from None


def _sent_spec(spec: SweepSpec, folder: Path) -> tuple[str, list[str]]:
    """Copy the spec's local files into `folder`. Returns the spec as JSON with their new paths, and
    a line for each file or folder."""
    places, copied = dict[str, str](), list[str]()
    for field, path in local_inputs(spec).items():
        place = f"files/{field}/{path.name}"
        copied.append(f"{field}: {copy(path, folder / place)}")
        places[field] = f"./{place}"
    return json.dumps(with_inputs(spec, places).model_dump(mode="json")), copied


def _shell(command: list[str]) -> str:
    import shlex

    return shlex.join(command)
