"""Finds the prompts of a shard that kill their worker, by bisection. Independent of Ray.

The search first runs a worker that only loads the model. If loading kills the worker, no prompt is
responsible.
"""

from collections import Counter
from collections.abc import Sequence

MAX_LONE_DEATHS = 2
"""Workers that a single prompt, or loading, must kill: one death may have another cause."""

Group = tuple[str, ...]
"""Prompt ids that one worker processes together."""
LOADING: Group = ()
"""The empty group: the worker only loads the model."""


class Bisection:
    """Finds the prompts of a shard that kill workers.

    Take the groups to run from `take_waiting` and report for each whether its worker `died` or
    `survived`.
    """

    def __init__(self, prompt_ids: Sequence[str]) -> None:
        self._prompt_ids = tuple(prompt_ids)
        self._waiting: list[Group] = []
        self.guilty: list[str] = []
        self.ends_at_loading = False
        """Whether loading alone kills workers; then the search is over."""
        self._num_open = 0
        self._deaths = Counter[Group]()
        self._try([LOADING])

    @property
    def is_over(self) -> bool:
        """Whether every prompt was in a group that survived, or was found to kill workers."""
        return self._num_open == 0

    def take_waiting(self) -> list[Group]:
        """The groups to run next; each is returned once."""
        taken, self._waiting = self._waiting, []
        return taken

    def survived(self, group: Group) -> None:
        """The worker survived: no prompt of the group kills workers on its own."""
        self._num_open -= 1
        if group == LOADING:
            self._try(_halves(self._prompt_ids))

    def died(self, group: Group) -> None:
        """The worker died: split the group, or retry a single prompt."""
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
