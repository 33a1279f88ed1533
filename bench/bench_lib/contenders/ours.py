"""encodec_fast, on each of its backends."""

from __future__ import annotations

from typing import Any

import torch

from bench_lib.cases import Case, stock_model
from bench_lib.contenders.base import Call
from bench_lib.contenders.stock import Stock


class Ours(Stock):
    """encodec_fast on one backend, which is demanded by name: where it can't run a call, the call fails."""

    backend: str

    def load(self, model: str) -> Any:
        from encodec_fast import EncodecModel

        stock = stock_model(model)
        ours = EncodecModel(stock.config).eval()
        ours.load_state_dict(stock.state_dict())
        return ours.to(self.device)

    def prepare(self, case: Case) -> Call:
        from encodec_fast import use_backend

        call = super().prepare(case)

        def on_backend() -> Any:
            with use_backend(self.backend):
                return call()

        return on_backend


class OursCpu(Ours):
    name, backend = "ours-cpu", "cpu"

    @staticmethod
    def missing(device: torch.device) -> str | None:
        from encodec_fast.backends.cpu_backend import CpuBackend

        return "it runs on CPUs only" if device.type != "cpu" else CpuBackend().unavailable()


class OursTorch(Ours):
    name, backend = "ours-torch", "torch"


class OursTriton(Ours):
    name, backend = "ours-triton", "triton"

    @staticmethod
    def missing(device: torch.device) -> str | None:
        if device.type != "cuda":
            return "it runs on CUDA and ROCm devices"
        from encodec_fast.backends.triton_backend import TritonBackend

        return TritonBackend().unavailable()
