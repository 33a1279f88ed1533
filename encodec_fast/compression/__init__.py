"""Codes as few bytes: the files of `encodec` (version 0 of `.ecdc`), a container of our own, and the coders inside it. No torch."""
