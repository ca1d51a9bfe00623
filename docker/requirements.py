"""Prints the run-time requirements in pyproject.toml, one per line, for the image."""

import sys
import tomllib
from pathlib import Path

EXTRAS = ("cluster", "vader", "gguf")

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
build = ["setuptools>=77"]  # to install prefsweep itself without a network
extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
print(*project["dependencies"], *extras, *build, sep="\n")
