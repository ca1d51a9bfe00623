"""The report of a sweep: a page, tables and samples."""
