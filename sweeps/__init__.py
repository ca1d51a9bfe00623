"""The vocabulary of prefsweep: spec, grid, records, errors. Needs only pydantic and YAML."""
