"""The fault injector names functions of the product as strings: each must be there."""

import importlib
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.faults.harness import Fault, fault_environment
from tests.integration.faults.inject.sitecustomize import POINTS


@pytest.mark.parametrize("point", POINTS)
def test_every_point_of_the_fault_injector_is_a_function(point: str) -> None:
    module, name = POINTS[point]
    assert callable(operator.attrgetter(name)(importlib.import_module(module)))


def test_a_fault_that_does_not_exist_is_refused_by_the_harness_and_by_every_process(
    tmp_path: Path,
) -> None:
    with pytest.raises(AssertionError, match="no such fault"):
        Fault("nowhere")
    with pytest.raises(AssertionError, match="no such fault"):
        Fault("training", "nothing")
    environment = fault_environment(tmp_path, [Fault("training")])
    faults = tmp_path / "faults.json"
    faults.write_text(faults.read_text().replace("training", "trainig"))
    command = [sys.executable, "-c", "print('went on')"]
    run = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0 and "went on" not in run.stdout
    assert "no such fault: hold at trainig" in run.stderr
