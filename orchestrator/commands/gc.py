"""The `gc` command: lists data that no sweep references, and deletes it if asked."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from prefsweep.orchestrator.commands.options import Json, Storage
from prefsweep.orchestrator.display.terminal import say
from prefsweep.orchestrator.state.hints import DEFAULT_STORAGE
from prefsweep.sweeps.errors import StoreError


def gc(
    storage: Storage = DEFAULT_STORAGE,
    yes: Annotated[bool, typer.Option("--yes", help="Delete the listed data.")] = False,
    as_json: Json = False,
) -> None:
    """List data that no sweep references; delete it with --yes.

    Never deleted: data that a sweep's current spec references, GPU measurements, files that
    processes of this machine are writing and, while any driver is running, unfinished files of
    other machines. A driver on another machine counts as running if it renewed its lease in the
    last minute, by the storage's clock.
    """
    from prefsweep.orchestrator.state.garbage import delete_garbage, find_garbage
    from prefsweep.orchestrator.store.store import Store

    store = Store(storage)
    garbage = find_garbage(store)
    num_bytes = sum(item.num_bytes for item in garbage)
    if not as_json:
        for item in garbage:
            say(f"{item.num_bytes / 1e6:10.1f} MB  {item.what:<10}  {store.display(item.path)}")
    total = f"{len(garbage)} items, {num_bytes / 1e6:.1f} MB"
    problems = delete_garbage(store, garbage) if yes else []
    if as_json:
        items = [{**asdict(item), "path": store.display(item.path)} for item in garbage]
        document = {"items": items, "num_bytes": num_bytes, "delete": yes, "problems": problems}
        say(json.dumps(document, indent=2))
    if problems:
        raise StoreError(
            f"{len(problems)} of {len(garbage)} items could not be deleted:\n" + "\n".join(problems)
        )
    if not as_json:
        remedy = "deleted" if yes or not garbage else "unreferenced; --yes deletes them"
        say(f"{total}: {remedy}" if garbage else "nothing to delete: all data is referenced")
