"""Who is compared.

All have the weights of `cases.stock_model`, in float32. A new contender is one class, one line in CONTENDERS
and one in `legend.LEGEND`.
"""

from __future__ import annotations

import torch

from bench_lib.contenders.base import Call, Contender
from bench_lib.contenders.graphs import OnnxRuntime, OpenVino
from bench_lib.contenders.original import Original
from bench_lib.contenders.ours import Ours, OursCpu, OursTorch, OursTriton
from bench_lib.contenders.stock import Compiled, Folded, Stock

__all__ = ["CONTENDERS", "OURS", "Call", "Contender", "Original", "Stock", "chosen"]

CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind for kind in (Stock, Folded, Compiled, Original, OnnxRuntime, OpenVino, OursTorch, OursCpu, OursTriton)
}
OURS = tuple(name for name, kind in CONTENDERS.items() if issubclass(kind, Ours))


def chosen(names: list[str], device: torch.device) -> tuple[list[str], list[str]]:
    """Returns the contenders to run, and sentences about those left out.  "ours" is every backend of ours that runs on the device.

    Raises ValueError for a name that is no contender, and where one of ours, asked for by its full name, can't run.
    """
    unknown = sorted(set(names) - set(CONTENDERS) - {"ours"})
    if unknown:
        raise ValueError(f"--against: {', '.join(unknown)} is no contender. Choose from ours, {', '.join(CONTENDERS)}.")
    wanted = [name for name in CONTENDERS if name in names or ("ours" in names and name in OURS)]
    reasons = {name: CONTENDERS[name].missing(device) for name in wanted}
    refused = [f"{name}: {reason}" for name, reason in reasons.items() if reason and name in names and name in OURS]
    if refused:
        raise ValueError("; ".join(refused))
    # of "ours", the backends of other devices are not missed
    mentioned = (name for name in reasons if name in names or device.type == ("cuda" if name == "ours-triton" else "cpu"))
    left_out = [f"{name} is left out: {reasons[name]}" for name in mentioned if reasons[name]]
    return [name for name, reason in reasons.items() if reason is None], left_out
