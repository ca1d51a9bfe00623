"""Renders one trial for a terminal: its numbers, its curves, and completions beside the untrained
policy's."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prefsweep.orchestrator.text import clean, escaped, show, with_interval
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.records import EvaluationSample, TrialResult
from prefsweep.sweeps.validation_messages import listed

BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40
"""Characters of a curve; longer ones are thinned."""
NUM_PROMPTS = 2
"""Prompts shown where none is asked for."""
_BOUNDS = ("_ci_low", "_ci_high")
_NOT_CURVES = ("step", "epoch", "eval/num_prompts", "eval/num_completions")


def render_trial(
    result: TrialResult, untrained: TrialResult | None, prompt: str | None
) -> RenderableType:
    """The trial; `prompt` is the number of a held-out prompt, or a part of its text.

    Without one, the prompts with the largest and the smallest gain are shown. Raises UsageError if
    there is no such prompt.
    """
    title = Text(f"{clean(result.name)}  {result.trial_id}  {result.status}", "bold")
    parts: list[RenderableType] = [title]
    if result.failure is not None:
        parts.append(Text(clean(result.failure.message), "red"))
    parts += [Text(), _numbers(result, untrained)]
    if result.history:
        parts += [Text(), _curves(result.history)]
    prompts = _by_prompt(result.samples)
    before = _by_prompt([] if untrained is None else untrained.samples)
    for number in _chosen(prompts, before, prompt):
        parts += [Text(), _samples(number, prompts, before)]
    return Group(*parts)


def sparkline(values: Sequence[float]) -> str:
    """A curve in block characters, its least value the lowest block and its largest the highest."""
    if len(values) > CURVE_WIDTH:
        last = len(values) - 1
        values = [values[round(i * last / (CURVE_WIDTH - 1))] for i in range(CURVE_WIDTH)]
    low, high = min(values), max(values)
    steps = len(BARS) - 1
    return "".join(
        BARS[steps // 2 if high == low else round((value - low) / (high - low) * steps)]
        for value in values
    )


def _numbers(result: TrialResult, untrained: TrialResult | None) -> Table:
    table = Table("metric", "trial", "untrained", box=None, pad_edge=False, header_style="dim")
    before = {} if untrained is None else untrained.metrics
    for name in result.metrics:
        if not name.endswith(_BOUNDS):
            table.add_row(name, _cell(result.metrics, name), _cell(before, name))
    if result.train_seconds is not None:
        table.add_row("train_seconds", show(result.train_seconds), "")
    return table


def _cell(metrics: Mapping[str, float | None], name: str) -> str:
    if name not in metrics:
        return ""
    start = name.removesuffix("_mean")
    low, high = (metrics.get(f"{start}{bound}") for bound in _BOUNDS)
    return with_interval(metrics[name], None if low is None or high is None else (low, high))


def _curves(history: Sequence[Mapping[str, float]]) -> Table:
    table = Table("along training", "first", "", "last", box=None, pad_edge=False)
    for name in dict.fromkeys(key for line in history for key in line):
        values = [line[name] for line in history if name in line]
        if name not in _NOT_CURVES and not name.endswith(_BOUNDS) and len(values) > 1:
            table.add_row(clean(name), show(values[0]), sparkline(values), show(values[-1]))
    return table


def _by_prompt(samples: Sequence[EvaluationSample]) -> dict[str, list[EvaluationSample]]:
    found: dict[str, list[EvaluationSample]] = {}
    for sample in samples:
        found.setdefault(sample.prompt_id, []).append(sample)
    return found


def _chosen(
    prompts: Mapping[str, list[EvaluationSample]],
    before: Mapping[str, list[EvaluationSample]],
    wanted: str | None,
) -> list[int]:
    """Places of the prompts to show, from 0."""
    ids = list(prompts)
    if wanted is None:
        gains = [_reward(prompts[key]) - _reward(before.get(key, ())) for key in ids]
        order = sorted(range(len(ids)), key=lambda i: -gains[i])
        return order if len(order) <= NUM_PROMPTS else [order[0], order[-1]]
    if wanted.isdecimal() and 1 <= int(wanted) <= len(ids):
        return [int(wanted) - 1]
    found = [i for i, key in enumerate(ids) if wanted in prompts[key][0].prompt or wanted == key]
    if not found or wanted.isdecimal():
        texts = listed(f"{i} {prompts[key][0].prompt!r}" for i, key in enumerate(ids, start=1))
        raise UsageError(f"there is no held-out prompt {wanted[:80]!r}; there are: {texts}")
    return found[:NUM_PROMPTS]


def _reward(samples: Sequence[EvaluationSample]) -> float:
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    return sum(rewards) / len(rewards) if rewards else 0.0


def _samples(
    number: int,
    prompts: Mapping[str, list[EvaluationSample]],
    before: Mapping[str, list[EvaluationSample]],
) -> RenderableType:
    key = list(prompts)[number]
    table = Table("untrained", "trial", pad_edge=False, expand=True, show_lines=True)
    left, right = before.get(key, []), prompts[key]
    for index in range(max(len(left), len(right))):
        table.add_row(*(_completion(side, index) for side in (left, right)))
    head = f"prompt {number + 1} of {len(prompts)}: {escaped(right[0].prompt)}"
    return Group(Text(head, "bold"), table)


def _completion(samples: Sequence[EvaluationSample], index: int) -> Text:
    if index >= len(samples):
        return Text()
    sample = samples[index]
    reward = "" if sample.reward is None else f"reward {show(sample.reward)}, "
    facts = f"{reward}KL {show(sample.kl)}, {sample.num_tokens} tokens"
    return Text.assemble((facts, "dim"), "\n", escaped(sample.text.strip()))
