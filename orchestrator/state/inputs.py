"""The local files and folders that a spec names, for processes that cannot read the driver's disk.

A driver that attaches to a cluster copies them into the store, under a hash of their content, and
workers read them from there. `submit` sends them with the job instead. The data of an `entry`
section is read only by the driver.
"""

import logging
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefsweep.orchestrator.store.store import Store, new_manifest
from prefsweep.sweeps.errors import DataError, UsageError
from prefsweep.sweeps.functions import function_file
from prefsweep.sweeps.identity import Inputs
from prefsweep.sweeps.spec import (
    CallableReward,
    ClassifierReward,
    EntrySpec,
    PolicySpec,
    SweepSpec,
    VaderReward,
)
from prefsweep.workers.corpus import source_identity
from prefsweep.workers.entry import entry_identity
from prefsweep.workers.folders import contents
from prefsweep.workers.functions import function_identity
from prefsweep.workers.locations import BUILTIN, PACKAGE, model_identity

log = logging.getLogger(__name__)

SECTIONS: Mapping[str, str] = {
    "policy": "policy",
    "policy_corpus": "policy.sft.corpus",
    "reward": "reward",
    "reward_corpus": "reward.train.corpus",
    "prompts": "prompts",
    "entry": "entry",
}
"""Members of `Inputs` that identify content -> the section of the spec that names it."""
_SOURCES: Mapping[str, str] = {
    "policy.model": "policy",
    "policy.sft.corpus.path": "policy_corpus",
    "policy.sft.corpus.dataset": "policy_corpus",
    "reward.model": "reward",
    "reward.train.corpus.path": "reward_corpus",
    "reward.train.corpus.dataset": "reward_corpus",
    "prompts.path": "prompts",
    "prompts.dataset": "prompts",
    "entry.path": "entry",
    "entry.dataset": "entry",
    "reward.function": "reward",
}
"""Fields that may name something local -> the member of `Inputs` that identifies its content."""
_FUNCTION = "reward.function"


def input_identity(spec: SweepSpec, member: str) -> str:
    """The identity of an input's current content (a member of `Inputs`); "" if the spec has none.

    Raises UsageError if the content is missing.
    """
    field = SECTIONS[member]
    section = _get(spec, field)
    if isinstance(section, PolicySpec | ClassifierReward):
        return model_identity(section, f"{field}.model")
    if isinstance(section, CallableReward) and function_file(section):
        return function_identity(section.function)
    if section is None or isinstance(section, CallableReward | VaderReward):
        return ""
    try:
        is_entry = isinstance(section, EntrySpec)
        return entry_identity(section) if is_entry else source_identity(section)
    except UsageError as error:
        raise type(error)(f"{field}: {error}") from None


def named_value(spec: SweepSpec, member: str) -> tuple[str, str | None]:
    """The name and the requested revision of an input in the spec; "" if the spec has none."""
    for field in (field for field, of in _SOURCES.items() if of == member):
        value = _named(spec, field)
        if value is not None:
            return value, _get(spec, f"{field.rpartition('.')[0]}.revision")
    return "", None


def named_input(spec: SweepSpec, member: str) -> str:
    """The field that names an input, with its value."""
    fields = {field: _get(spec, field) for field, of in _SOURCES.items() if of == member}
    named = [f"{field}={value}" for field, value in fields.items() if isinstance(value, str)]
    return named[0] if named else SECTIONS[member]


def local_inputs(spec: SweepSpec) -> dict[str, Path]:
    """Dotted field -> the file or folder it names, for those that exist on this disk."""
    paths = {
        field: Path(value).expanduser()
        for field in _SOURCES
        if (value := _named(spec, field)) is not None and not value.startswith((BUILTIN, PACKAGE))
    }
    return {field: path for field, path in paths.items() if path.exists()}


def absent_inputs(spec: SweepSpec) -> dict[str, str]:
    """Dotted field -> the path in it, for paths that do not exist on this disk."""
    here = local_inputs(spec)
    return {
        field: value
        for field in _SOURCES
        if (value := _named(spec, field)) is not None
        and field not in here
        and _is_path(field, value)
    }


def _is_path(field: str, value: str) -> bool:
    """Whether a value is a path, not a hub ID, URL or name."""
    if "://" in value or value.startswith((BUILTIN, PACKAGE)):
        return False
    return field.endswith(".path") or field == _FUNCTION or value.startswith((".", "/", "~"))


def local_members(spec: SweepSpec) -> set[str]:
    """Members of `Inputs` whose content is on this disk."""
    return {_SOURCES[field] for field in local_inputs(spec)}


def with_inputs(spec: SweepSpec, paths: Mapping[str, str]) -> SweepSpec:
    """The spec with some of its paths replaced."""
    for field, path in paths.items():
        name = f":{_get(spec, field).rpartition(':')[2]}" if field == _FUNCTION else ""
        spec = _replace(spec, field.split("."), f"{path}{name}")
    return spec


def store_inputs(store: Store, spec: SweepSpec, inputs: Inputs) -> list[str]:
    """Copy the inputs that workers read from this disk into the store; returns their fields.

    An input that has changed since the sweep was started is not copied.
    """
    local = {
        field: path
        for field, path in local_inputs(spec).items()
        if not field.startswith("entry.")
        and input_identity(spec, _SOURCES[field]) == getattr(inputs, _SOURCES[field])
    }
    for field, source in local.items():
        identity = getattr(inputs, _SOURCES[field])
        path = _path(store, identity, source)
        if store.manifest(path) is None:
            with store.staging() as folder:
                target = folder / "input"
                target.mkdir()
                copied = copy(source, _inside(target, source))
                if input_identity(spec, _SOURCES[field]) != identity:
                    raise DataError(f"{field}={source}: it changed while it was copied; run again")
                store.publish(path, target, new_manifest(identity, 1, 0.0))
                log.info("%s: copied into the store: %s", field, copied)
    return list(local)


def stored_inputs(store: Store, spec: SweepSpec, inputs: Inputs) -> SweepSpec:
    """The spec with the paths of local copies of what `store_inputs` has stored."""
    paths: dict[str, str] = {}
    for field, member in _SOURCES.items():
        value = _named(spec, field)
        if value is None or value.startswith((BUILTIN, PACKAGE)):
            continue
        path = _path(store, getattr(inputs, member), Path(value))
        if store.manifest(path) is not None:
            paths[field] = str(_inside(store.fetch(path), Path(value)))
    return with_inputs(spec, paths)


def is_stored(store: Store, spec: SweepSpec, inputs: Inputs, member: str) -> bool:
    """Whether workers read an input from the store; then its source is not needed any more."""
    paths = [
        _path(store, getattr(inputs, member), Path(value))
        for field, of in _SOURCES.items()
        if of == member and (value := _named(spec, field)) is not None
    ]
    return member != "entry" and any(store.manifest(path) is not None for path in paths)


def input_paths(store: Store, spec: SweepSpec, inputs: Inputs) -> list[str]:
    """The paths at which `store_inputs` stores the inputs of a spec, stored or not."""
    return [
        _path(store, getattr(inputs, member), Path(value))
        for field, member in _SOURCES.items()
        if (value := _named(spec, field)) is not None and not value.startswith((BUILTIN, PACKAGE))
    ]


def copy(source: Path, target: Path) -> str:
    """Copy a file, or a folder with its files; returns a description of what was copied.

    Raises DataError for links to outside the folder, and for files that are not regular.
    """
    found = contents(source)
    for file in found.files:
        place = target if file == source else target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return f"{found} of {source}" if source.is_dir() else f"{source}, {found}"


def _path(store: Store, identity: str, named: Path) -> str:
    return store.artifact("input", sha256(f"{identity}{named.suffix}".encode()).hexdigest())


def _inside(folder: Path, named: Path) -> Path:
    """Path of an input in its artefact; always the same name, so that equal content is equal."""
    return folder / f"content{named.suffix}"


def _named(spec: SweepSpec, field: str) -> str | None:
    """The path, id or name in a field; None where it names nothing that has a content here."""
    if field == _FUNCTION:
        return function_file(spec.reward)
    value = _get(spec, field)
    return value if isinstance(value, str) else None


def _get(section: Any, field: str) -> Any:
    for name in field.split("."):
        section = getattr(section, name, None)
    return section


def _replace(section: Any, names: list[str], value: str) -> Any:
    name, rest = names[0], names[1:]
    new = _replace(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: new})
