"""The search for the prompts of a shard that end their worker: by halves. Knows no Ray.

Before the first prompt, loading alone is tried: a model that ends whoever loads it would make every
prompt guilty.
"""

from collections import Counter
from collections.abc import Sequence

MAX_LONE_DEATHS = 2
"""Workers that a prompt, or loading, must end on its own: one may have died of something else."""

Group = tuple[str, ...]
"""Prompt ids that are tried together."""
LOADING: Group = ()
"""A worker that only loads what it needs."""


class Bisection:
    """Which prompts of a shard end the workers that work on them; none, if loading does already.

    Take the groups that wait to be tried, and say of each whether its worker `died` or `survived`.
    """

    def __init__(self, prompt_ids: Sequence[str]) -> None:
        self._prompt_ids = tuple(prompt_ids)
        self._waiting: list[Group] = []
        self.guilty: list[str] = []
        self.ends_at_loading = False
        """Whether workers end before they have any prompt; then the search is over."""
        self._num_open = 0
        self._deaths = Counter[Group]()
        self._try([LOADING])

    @property
    def is_over(self) -> bool:
        """Whether every prompt was either part of a group that survived, or is guilty."""
        return self._num_open == 0

    def take_waiting(self) -> list[Group]:
        """Groups to try next; each is given once."""
        taken, self._waiting = self._waiting, []
        return taken

    def survived(self, group: Group) -> None:
        """None of the group did it, or not alone."""
        self._num_open -= 1
        if group == LOADING:
            self._try(_halves(self._prompt_ids))

    def died(self, group: Group) -> None:
        """At least one of the group did it, or loading."""
        self._num_open -= 1
        self._deaths[group] += 1
        if len(group) > 1:
            self._try(_halves(group))
        elif self._deaths[group] < MAX_LONE_DEATHS:
            self._try([group])
        elif group == LOADING:
            self.ends_at_loading = True
        else:
            self.guilty += group

    def _try(self, groups: list[Group]) -> None:
        self._num_open += len(groups)
        self._waiting += groups


def _halves(group: Group) -> list[Group]:
    middle = len(group) // 2
    return [half for half in (group[:middle], group[middle:]) if half]
