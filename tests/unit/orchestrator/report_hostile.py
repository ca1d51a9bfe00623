"""A sweep whose every text is hostile: markup, scripts, odd characters, endless lines."""

from dataclasses import replace

from prefsweep.sweeps.records import Failure, Status, SweepResults

from .report_fixture import sweep_results

MARKUP = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"%{x}{{7*7}}'
TEXTS = (
    MARKUP,
    "</script><script>window.hacked=1</script><!--",
    "\u202eright to left\u202c, zero\u200bwidth\u200d, \u2028line\u2029s and \x07bell",
    "\u05d4\u05e1\u05e8\u05d8 \u05d4\u05d6\u05d4 \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600\U0001f3f4\U000e0067\U000e0062\U000e007f " * 40,
    "x" * 10_000,
    "words " * 2_000,
    "a\u0301\u0302\u0303\u0304" * 300,
)


def hostile_results() -> SweepResults:
    """The made-up sweep with these texts as prompts, completions, names and errors."""
    results = sweep_results(num_prompts=len(TEXTS))
    rows = []
    for number, result in enumerate(results.results):
        samples = [
            replace(
                sample,
                prompt=TEXTS[int(sample.prompt_id, 16)],
                text=TEXTS[(int(sample.prompt_id, 16) + number + sample.sample_idx) % len(TEXTS)],
            )
            for sample in result.samples
        ]
        failure = None
        if result.status is Status.FAILED:
            failure = Failure("deterministic", MARKUP + "y" * 10_000, "z" * 10_000 + MARKUP, MARKUP)
        name = result.name if number != 2 else f"{MARKUP}\u202e{'n' * 300}"
        rows.append(replace(result, name=name, samples=samples, failure=failure))
    stages = [replace(results.stages[0], name=MARKUP, notes={MARKUP: 1.0}), *results.stages[1:]]
    return replace(
        results,
        sweep=MARKUP,
        results=rows,
        stages=stages,
        spec={MARKUP: TEXTS[5], "policy": {"model": MARKUP}},
        environment={MARKUP: MARKUP},
    )
