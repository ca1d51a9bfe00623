"""Runs a group of trials from start to end: trained together if possible, then evaluated in turn.

An error of one trial (its storage, its values, a stop) is handled by that trial's Attempts, and the
other trials continue. An error of the whole group, above all out of memory, belongs to no single
trial: the group is halved, down to single trials, which attempts.py runs. A group of one trial is
run as a single trial. Trials can share a group if their checkpoints have the same step.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefsweep.orchestrator.state.sweep import Trial
from prefsweep.orchestrator.tasks.attempts import (
    Attempts,
    WorkerSlot,
    release_memory,
    run_trial,
)
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.orchestrator.tasks.failures import pause
from prefsweep.orchestrator.tasks.training import (
    Training,
    is_trained_elsewhere,
    prepare,
    publish_weights,
    verified_weights,
)
from prefsweep.orchestrator.tasks.trial_output import TrialOutput
from prefsweep.sweeps.errors import StopRequested, StoreError
from prefsweep.sweeps.fusing import cut, fusing_key
from prefsweep.sweeps.records import Status

if TYPE_CHECKING:
    from prefsweep.workers.fused import Outcome
    from prefsweep.workers.hooks import Hooks

log = logging.getLogger(__name__)


def run_group(cache: WorkerCache, trials: Sequence[Trial], slot: WorkerSlot) -> None:
    """Complete each trial, as `run_trial` does, but train them together."""
    attempts = [Attempts(cache.sweep, trial, slot) for trial in trials]
    ended = set[str]()
    if len(trials) > 1:
        with ExitStack() as outputs:
            members = [
                _Member(
                    own,
                    outputs.enter_context(
                        TrialOutput(cache.sweep, own.trial, prints=slot.is_worker)
                    ),
                )
                for own in attempts
            ]
            try:
                ended = _GroupTraining(cache, members).run()
            finally:
                release_memory()
    for own in attempts:
        if own.trial.trial_id not in ended:
            run_trial(cache, own.trial, slot, own)


@dataclass(frozen=True)
class _Member:
    """A trial of the group."""

    attempts: Attempts
    output: TrialOutput

    @property
    def trial(self) -> Trial:
        return self.attempts.trial


_Group = list[tuple[_Member, Training]]
_Value = TypeVar("_Value")


class _GroupTraining:
    """Trains groups in rounds, until no two trials are left that can be trained together."""

    def __init__(self, cache: WorkerCache, members: Sequence[_Member]) -> None:
        self._cache, self._open, self._again = cache, list(members), list[_Member]()
        self._stop = _StopOfStep(members[0].attempts.should_stop)
        self._ended, self._left = set[str](), set[str]()
        """Ids of trials whose status is recorded, and of those that have left the group that is
        trained now, while the others go on."""
        self._delay_s = 0.0

    def run(self) -> set[str]:
        """Train the groups. Returns the IDs of trials whose status is recorded; the others still
        have to be evaluated, or trained alone."""
        self._look_for_deaths()
        while self._open:
            if self._delay_s:
                pause(self._delay_s, self._stop.asked)
                self._delay_s = 0.0
            if self._stop.asked():
                break  # each trial handles the request itself
            for group in self._prepared():
                self._train(group)
                release_memory()
            self._open, self._again = self._again, []
        return self._ended

    def _look_for_deaths(self) -> None:
        """Set one wait for all trials, if their previous process died."""
        for member in self._open:
            delay_s = member.attempts.delay_after_death(member.output)
            if delay_s is None:
                self._ended.add(member.trial.trial_id)
            else:
                self._delay_s = max(self._delay_s, delay_s)
        self._open = [m for m in self._open if m.trial.trial_id not in self._ended]

    def _prepared(self) -> list[_Group]:
        """Groups of two or more open trials that can be trained together; the other trials are
        trained alone later."""
        alike: dict[object, list[_Member]] = {}
        for member in self._open:
            state = member.attempts.state
            if state.largest_group != 1:
                key = (fusing_key(member.trial.spec), state.halvings)
                alike.setdefault(key, []).append(member)
        by_step: dict[object, _Group] = {}
        for key, members in alike.items():
            for member in members if len(members) > 1 else ():
                training = self._own(member, partial(self._prepare, member))
                if training is not None:
                    by_step.setdefault((key, training.step), []).append((member, training))
        groups = [
            group
            for found in by_step.values()
            for group in cut(found, [m.attempts.state.largest_group for m, _ in found])
        ]
        return [group for group in groups if len(group) > 1]

    def _prepare(self, member: _Member) -> Training | None:
        """Prepare a trial; None if it is trained already, or was started alone."""
        from prefsweep.workers.window import is_of_group

        cache, attempts = self._cache, member.attempts
        if verified_weights(cache.sweep, member.trial) is not None:
            return None
        attempts.begin(member.output)
        wanted = self._stop.wanted
        training = prepare(cache, member.trial, attempts.state, wanted, member.output)
        with training.reading():
            began_alone = training.folder is not None and not is_of_group(training.folder)
        return None if began_alone else training

    def _train(self, group: _Group) -> None:
        members, started, self._left = [m for m, _ in group], time.monotonic(), set()
        with self._cache.sweep.store.staging() as folder:
            outputs = [folder / member.trial.trial_id for member in members]
            try:
                for member in members:
                    member.output.note(f"trained in a group of {len(group)}")
                    member.attempts.state.group = len(group)
                    member.attempts.write(Status.RUNNING)
                outcomes = self._outcomes(group, outputs)
            except Exception as error:  # an error of the whole group
                left = [member for member in members if member.trial.trial_id not in self._left]
                if left:
                    self._break_up(left, error)
                return
            share_s = (time.monotonic() - started) / len(group)
            for (member, training), output, outcome in zip(group, outputs, outcomes, strict=True):
                if member.trial.trial_id not in self._left:
                    self._own(member, partial(self._take, training, outcome, output, share_s))

    def _outcomes(self, group: _Group, outputs: Sequence[Path]) -> "list[Outcome]":
        from prefsweep.workers.fused import train_group

        cache, trials = self._cache, [member.trial.spec for member, _ in group]
        hooks = [
            replace(
                self._stop.looked_for_by(training.hooks),
                on_end=partial(self._leaves, member, training),
            )
            for member, training in group
        ]
        models = (cache.policy(), cache.tokenizer)
        return train_group(trials, cache.sweep.spec.training, *models, cache.pairs, outputs, hooks)

    def _leaves(self, member: _Member, training: Training, error: Exception) -> None:
        """Record what has ended a trial while the others go on, or else when they are done."""
        with suppress(StoreError, OSError):
            self._own(member, partial(self._take, training, error, Path(), 0.0))
            self._left.add(member.trial.trial_id)

    def _take(self, training: Training, outcome: "Outcome", weights: Path, share_s: float) -> None:
        """Publish a trial's weights, or raise the error that ended it."""
        sweep = self._cache.sweep
        if isinstance(outcome, StopRequested) and is_trained_elsewhere(sweep, training):
            return
        if isinstance(outcome, Exception):
            with training.reading():
                raise outcome
        publish_weights(sweep, training, weights, outcome, share_s)

    def _break_up(self, members: Sequence[_Member], error: Exception) -> None:
        """Halve a group that cannot be trained at its size; single trials fail individually.

        Raises BrokenWorkerError if the GPU context of this process is lost.
        """
        from prefsweep.workers.fused import UnfusableError

        failures = [member.attempts.failure_of(error, member.output) for member in members]
        broken = [
            member.attempts.broken(error, failure)
            for member, failure in zip(members, failures, strict=True)
        ]
        if broken[0] is not None:
            raise broken[0] from None
        cannot = isinstance(error, UnfusableError)
        log.warning(
            "%d trials cannot be trained together (%s); retrying %s",
            len(members),
            failures[0].message,
            "each alone"
            if cannot or members[0].attempts.state.group == 2
            else "in groups of half as many",
        )
        for member, failure in zip(members, failures, strict=True):
            member.output.note(failure.traceback)
            if cannot:
                member.attempts.state.group = 1
            member.attempts.halve_group(member.output)
        self._again += members

    def _own(self, member: _Member, act: Callable[[], _Value]) -> _Value | None:
        """Run a step of one trial; if it raises, its Attempts handle the error: returns None."""
        try:
            return act()
        except Exception as error:  # a failure is recorded, and other trials continue
            failure = member.attempts.settle(error, member.output)
        if failure is None:
            self._ended.add(member.trial.trial_id)
        else:
            self._delay_s = max(self._delay_s, member.attempts.delay_after(failure))
            self._again.append(member)
        return None


class _StopOfStep:
    """Checks for a stop request once per step, so that all trials of a group stop at one step."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked
        self._step, self._wanted = 0, False

    def wanted(self) -> bool:
        """Whether a stop was requested at this step."""
        return self._wanted

    def looked_for_by(self, hooks: "Hooks") -> "Hooks":
        """A trial's hooks that also check for the request at each step."""
        plain = hooks.on_step

        def on_step(step: int, model: Any) -> None:
            if step != self._step:
                self._step, self._wanted = step, self.asked()
            if plain is not None:
                plain(step, model)

        return replace(hooks, on_step=on_step)
