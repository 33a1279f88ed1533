"""Processes that are what torchrun starts: forked, so that they need not import, with its variables of the environment."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
import torch.distributed as dist


def start_ranks(count: int, work: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """Starts `count` processes that run work(*arguments) as the ranks of one group; the caller joins or kills them."""
    if not dist.is_available() or "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs torch.distributed and processes that fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_run, args=(rank, count, port, work, arguments), daemon=True) for rank in range(count)]
    for process in processes:
        process.start()
    return processes


def run_ranks(count: int, work: Callable[..., None], *arguments: Any, seconds: float = 60) -> list[int | None]:
    """Runs them to their end; returns their exit codes, None for one that had to be killed."""
    processes = start_ranks(count, work, *arguments)
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def _run(rank: int, count: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    work(*arguments)
