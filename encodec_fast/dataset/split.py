"""Which part of a run is this process's, and which device: as `--shard i/n` and `--device` say, or a job scheduler's environment."""

from __future__ import annotations

import re
from collections.abc import Mapping

from encodec_fast.formats import joined


def part_of_process(text: str, environment: Mapping[str, str]) -> tuple[tuple[int, int], str]:
    """Returns this process's (index, count), and which variables say so, "" if none does.  text: `i/n`, or "auto".

    Raises ValueError for another text, and for variables that are no numbers or no part.
    """
    if text != "auto":
        return parse_shard(text), ""
    index, count, said = shard_of_environment(environment)
    if not 0 <= index < count:
        raise ValueError(f"shard is {index}/{count}; allowed are 0/{count} ... {count - 1}/{count}.")
    return (index, count), said


def device_of_process(device: str, environment: Mapping[str, str]) -> str:
    """Returns the device; of "auto" the GPU that a scheduler leaves to this process, or the CPU where there is none."""
    rank = local_rank(environment)
    if device != "auto" or rank is None:
        return device
    import torch

    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (index, count) of `i/n`, counted from 0. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(part) for part in found.groups()) if found else (0, 0)
    if index >= count:
        raise ValueError(f"--shard is {text!r}; i/n is needed, from 0/n to n-1/n.")
    return index, count


def shard_of_environment(environment: Mapping[str, str]) -> tuple[int, int, str]:
    """Returns (index, count, which variables say so); (0, 1, "") if none does.

    torchrun's come first, then those of a SLURM array, an srun step, or both.
    The tasks of all jobs of an array share the work, where each job has equally many.
    SLURM_NTASKS alone means nothing: it is set in a batch script too, which is one process.
    """

    def number(name: str, default: int | None = None) -> int:
        value = environment.get(name, default)
        try:
            return int(value)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is {value!r} in the environment; give --shard i/n, or 0/1 for all.") from error

    if "RANK" in environment and "WORLD_SIZE" in environment:
        return number("RANK"), number("WORLD_SIZE"), "RANK and WORLD_SIZE"
    index, count, said = 0, 1, []
    if "SLURM_ARRAY_TASK_ID" in environment:
        step = max(1, number("SLURM_ARRAY_TASK_STEP", 1))
        index = (number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN", 0)) // step
        count = number("SLURM_ARRAY_TASK_COUNT")
        said += ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"]
    if "SLURM_PROCID" in environment and number("SLURM_STEP_NUM_TASKS", 1) > 1:
        tasks = number("SLURM_STEP_NUM_TASKS")
        index, count = index * tasks + number("SLURM_PROCID"), count * tasks
        said += ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"]
    return index, count, joined(said, "and") if said else ""


def local_rank(environment: Mapping[str, str]) -> int | None:
    """Returns which of its machine's processes this is, where torchrun or an srun step says so: the GPU it should take."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in environment and ("WORLD_SIZE" in environment or "SLURM_STEP_NUM_TASKS" in environment):
            return int(environment[name])
    return None
