"""The report of a sweep: one page, tables and samples, from its results."""
