"""The command that provenance shows."""

from prefsweep.orchestrator.state.command import COMMAND_VARIABLE, typed_command


def test_command_has_spec_and_overrides_but_no_addresses() -> None:
    words = ["/opt/bin/prefsweep", "run", "my sweep.yaml", "--storage", "s3://key:secret@b", "a=1"]
    assert typed_command(words, {}) == "prefsweep run 'my sweep.yaml' a=1"
    words = ["cli.py", "run", "quickstart", "--storage=s3://key:secret@b", "--address", "host:1"]
    assert typed_command([*words, "seeds=[0, 1]"], {}) == "prefsweep run quickstart 'seeds=[0, 1]'"


def test_a_job_has_the_command_that_it_was_submitted_with() -> None:
    sent = "prefsweep submit my_sweep.yaml 'seeds=[0, 1]'"
    words = ["cli.py", "run", "sweep.json", "--until", "report"]
    assert typed_command(words, {COMMAND_VARIABLE: sent}) == sent


def test_other_programs_have_no_command() -> None:
    assert typed_command(["/usr/bin/pytest", "tests"], {}) == ""
    assert typed_command([], {}) == ""
