"""The suites of bench/run.py: one file each, named as the suite."""
