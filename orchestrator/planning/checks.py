"""The checks of `prefsweep doctor` on what a run reads and reports to, and the list of all checks.

Each looks at one thing and says what it found; none changes or downloads anything. Those on
machine, cluster and storage are in places.py; doctor.py runs them all.
"""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import util
from pathlib import Path

from prefsweep.orchestrator.planning.estimate import Estimate, estimate
from prefsweep.orchestrator.planning.estimate_lines import estimate_lines, readable_bytes
from prefsweep.orchestrator.planning.findings import Check, Level, Line
from prefsweep.orchestrator.planning.places import (
    cluster,
    cuda,
    packages,
    python,
    storage_here,
    this_machine,
)
from prefsweep.sweeps.spec import (
    ClassifierReward,
    ModelSection,
    PolicySpec,
    Reward,
    SweepSpec,
    WandbSpec,
)
from prefsweep.workers.locations import BUILTIN, load_function, model_identity, model_source
from prefsweep.workers.sizes import disk_bytes, has_weights, model_folder

ESTIMATE = "estimate"
"""The check that resolves the whole sweep, as a run does first."""
SERVER_TIMEOUT_S = 5.0
"""Longest wait for W&B's server to answer at all."""


def all_checks(spec: SweepSpec | None, storage: str, address: str | None) -> list[Check]:
    """The checks in the order of the table; without a spec, those that need none."""
    checks = [
        Check("python", python),
        Check("packages", packages),
        Check("cuda", cuda),
    ]
    if address is None:
        checks.append(Check("machine", lambda: this_machine(spec)))
        checks.append(Check("storage", lambda: storage_here(storage), Level.ERROR))
    else:
        checks.append(Check("cluster", lambda: cluster(spec, storage, address), Level.ERROR))
    if spec is not None:
        checks.append(Check("policy", lambda: [model(spec.policy, "policy")]))
        if spec.reward is not None:
            reward = spec.reward
            checks.append(Check("reward", lambda: [scorer(reward)]))
        checks.append(Check("data", lambda: data(spec)))
        checks.append(Check(ESTIMATE, lambda: left_to_do(spec, storage)))
    wandb = WandbSpec() if spec is None else spec.tracking.wandb
    return [*checks, Check("W&B", lambda: [tracking(wandb)])]


def model(section: ModelSection, field: str) -> Line:
    """Whether a model is here, or can be downloaded; no weights are."""
    if section.model.startswith(BUILTIN):
        model_identity(section, f"{field}.model")
        return Line(field, Level.OK, f"{section.model} comes with prefsweep")
    if isinstance(section, PolicySpec) and section.gguf_file and util.find_spec("gguf") is None:
        found = f"{section.model}: its GGUF file needs the package gguf"
        return Line(field, Level.ERROR, found, "pip install gguf")
    source = model_source(section)
    is_folder = Path(source.path).is_dir()
    if not is_folder:
        model_identity(section, f"{field}.model")  # asks the hub or its cache; raises ModelError
    folder = model_folder(source)
    if folder is not None and has_weights(folder):
        where = str(folder) if is_folder else "in the local Hugging Face cache"
        size = readable_bytes(disk_bytes(folder))
        return Line(field, Level.OK, f"{section.model}: {size}, {where}")
    if is_folder:
        found = f"{folder} has no weights (model.safetensors)"
        return Line(field, Level.ERROR, found, f"correct {field}.model")
    if os.environ.get("HF_HUB_OFFLINE"):
        found = f"{section.model}: its configuration is cached, but not its weights"
        remedy = f"unset HF_HUB_OFFLINE, or `hf download {section.model}` where there is a network"
        return Line(field, Level.ERROR, found, remedy)
    return Line(field, Level.OK, f"{section.model} is on the hub; workers download it")


def scorer(reward: Reward) -> Line:
    """Whether the reward can be computed."""
    if isinstance(reward, ClassifierReward):
        return model(reward, "reward")
    if reward.type == "callable":
        load_function(reward.function)
        return Line("reward", Level.OK, f"{reward.function} is importable here")
    if util.find_spec("vaderSentiment") is None:
        remedy = "pip install vaderSentiment"
        return Line("reward", Level.ERROR, "the package vaderSentiment is missing", remedy)
    return Line("reward", Level.OK, "VADER's lexicon")


def data(spec: SweepSpec) -> Iterator[Line]:
    """Whether prompts, corpora and entered data are where the spec says."""
    from prefsweep.workers.corpus import source_identity
    from prefsweep.workers.entry import entry_identity

    reward = spec.reward.train if isinstance(spec.reward, ClassifierReward) else None
    sources = {
        "prompts": spec.prompts,
        "policy.sft.corpus": spec.policy.sft and spec.policy.sft.corpus,
        "reward.train.corpus": reward and reward.corpus,
    }
    lines = [Line(name, Level.OK, source_identity(s)) for name, s in sources.items() if s]
    if spec.entry is not None:
        lines.append(Line("entry", Level.OK, entry_identity(spec.entry)))
    yield from lines


def left_to_do(spec: SweepSpec, storage: str) -> Iterator[Line]:
    """Time, cost and disk of the trials that are left. Raises what a run would be refused for."""
    from prefsweep.orchestrator.state.sweep import resolve
    from prefsweep.orchestrator.state.trial_record import is_finished

    sweep = resolve(spec, storage)
    left = [trial for trial in sweep.trials if not is_finished(sweep, trial.trial_id)]
    found = estimate(sweep, left)
    num_found = len(sweep.trials) - len(left)
    yield Line("trials", Level.OK, f"{len(left)} to run, {num_found} cached")
    for line in estimate_lines(found):
        name, _, text = line.partition(": ")
        yield Line(name, Level.OK, text) if name != "disk" else _disk(found, text)


def _disk(found: Estimate, text: str) -> Line:
    needed = (found.weights_bytes or 0) + (found.checkpoint_bytes or 0)
    if found.free_bytes is not None and needed > found.free_bytes:
        remedy = "make room, use another --storage, or train adapters (training.lora)"
        return Line("disk", Level.ERROR, text, remedy)
    return Line("disk", Level.OK, text)


def tracking(spec: WandbSpec) -> Line:
    """Whether W&B would be reached. Nothing it does can stop a run."""
    from prefsweep.orchestrator.tracking.wandb import server_url, wandb_mode

    mode = wandb_mode(spec, os.environ)
    if mode == "disabled":
        return Line("W&B", Level.OK, "disabled")
    if mode == "offline":
        wanted = spec.mode == "online"
        remedy = "set WANDB_API_KEY, or `wandb login`, to record online"
        found = "recorded offline" + (", as asked" if spec.mode == "offline" else ": no API key")
        return Line("W&B", Level.WARNING if wanted else Level.OK, found, remedy if wanted else "")
    url = server_url(os.environ)
    try:
        urllib.request.urlopen(url, timeout=SERVER_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        remedy = "runs are recorded offline and can be sent later with `wandb sync`"
        return Line("W&B", Level.WARNING, f"{url} cannot be reached: {error}", remedy)
    return Line("W&B", Level.OK, f"online, {url} answers")
