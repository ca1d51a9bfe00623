"""Keeps secrets of this process where they are: what Ray would pass on by itself, and where.

Workers take their keys from the environment of the node they run on.
"""

TUNE_PASSES_ON = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)
"""Variables that Tune copies into the runtime environment of trials, which Ray writes to its logs
(seen in runtime_env_agent.log with Ray 2.60)."""


def keep_from_tune() -> None:
    """Make Tune copy no keys into the runtime environment of trials."""
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(TUNE_PASSES_ON)
