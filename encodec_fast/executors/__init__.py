"""Backends that run a plan. Each lives in one file and is named once, in `backends.EXECUTORS`."""
