"""What encodes a run's batches: this process, a process for each of several devices, or a Ray cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from encodec_fast.corpus.tasks import Task
from encodec_fast.dataset.devices import DeviceError, DeviceJob, core_groups, run_on_devices
from encodec_fast.dataset.encoding import check_bandwidth, dataset_info, is_lost_gpu
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.options import RayCluster, TokenizeOptions
from encodec_fast.dataset.ray_engine import RayError, RayLost, run_on_ray
from encodec_fast.dataset.ray_stages import RayJob
from encodec_fast.dataset.run import Run, Summary, identity, plan
from encodec_fast.errors import first_line
from encodec_fast.formats import DatasetInfo
from encodec_fast.model import EncodecModel
from encodec_fast.plan.weights import weights_sha256
from encodec_fast.pretrained import known_config, load_model, torch_device
from encodec_fast.serving import request

# Stored as the name of a model that was not loaded by one
UNNAMED = "unnamed"


class RunStopped(RuntimeError):
    """The machine ended a run: a full disk, a lost GPU, a lost node. What was finished is kept, and the same call goes on from there."""


@dataclass(frozen=True)
class Engine:
    """Encodes the batches of a ledger with one model.

    model: in this process; the weights that every other process must have too.  model_id: by which they load it.
    sources: as they were named.  device: a list of them works in processes.  threads: of the CPU engine; 0: torch's choice.
    """

    model: EncodecModel
    model_id: str
    options: TokenizeOptions
    sources: Sequence[str]
    device: str | Sequence[str] = "auto"
    backend: str = "auto"
    threads: int = 0
    ray: RayCluster | None = None

    @cached_property
    def info(self) -> DatasetInfo:
        """What makes the codes."""
        kept = {"bandwidth": self.options.bandwidth, "device": str(self.model.device), "sources": list(self.sources)}
        return dataset_info(self.model, self.model_id, weights_sha256(self.model), kept, self.options.embeddings)

    def _stored_info(self, ledger: Ledger) -> DatasetInfo:
        """Returns what every shard says of the codes."""
        return replace(self.info, columns=ledger.columns)

    def plan(
        self,
        ledger: Ledger,
        tasks: Sequence[Task],
        *,
        overwrite: bool,
        retry_failed: bool,
        limit: int | None,
        progress: Callable[[int, int], None],
    ) -> int:
        """Schedules the clips that the ledger does not know; see run.plan. Raises ValueError for a bandwidth that the model lacks."""
        check_bandwidth(self.model.config, self.options.bandwidth)
        return plan(
            ledger,
            identity(self.info, self.model, self.options, self.sources),
            tasks,
            self.options,
            overwrite=overwrite,
            retry_failed=retry_failed,
            limit=limit,
            progress=progress,
        )

    def run(self, ledger: Ledger, progress: Callable[[Summary], None]) -> Summary:
        """Encodes what is left to do.  progress: called after each batch.

        Raises RunStopped where the machine is in the way; RayError without a cluster; LedgerError if another process is at it.
        """
        with naming_stops(ledger.out):
            if self.ray is not None:
                return run_on_ray(self._ray_job(self.ray, ledger), ledger, self.ray.address, progress)
            if not isinstance(self.device, str):
                return run_on_devices(self._device_jobs(self.device, ledger), progress)
            return Run(self.model, self._stored_info(ledger), ledger, self.options).run(progress)

    def _ray_job(self, ray: RayCluster, ledger: Ledger) -> RayJob:
        return RayJob(
            self.model_id,
            self.backend,
            self._stored_info(ledger),
            self.options,
            str(ledger.out.absolute()),
            self.model.config.sampling_rate,
            self.model.config.audio_channels,
            threads=self.threads or 1,
            gpus=1.0 if self.model.device.type == "cuda" else 0.0,
            actors=ray.actors,
        )

    def _device_jobs(self, devices: Sequence[str], ledger: Ledger) -> list[DeviceJob]:
        """Returns each device's part of the ledger's part: writers are numbered through the devices of all parts."""
        first, count = ledger.index * len(devices), ledger.count * len(devices)
        return [
            DeviceJob(
                self.model_id,
                device,
                self.backend,
                self.threads,
                cores,
                self._stored_info(ledger),
                self.options,
                str(ledger.out),
                first + number,
                count,
                ledger.run,
            )
            for number, (device, cores) in enumerate(zip(devices, core_groups(devices), strict=True))
        ]


@contextlib.contextmanager
def working_with(threads: int, backend: str) -> Iterator[None]:
    """Has the block run with so many CPU threads (0: torch's choice) on a backend; see request.prefer_backend."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        with request.prefer_backend(backend):
            # a wrong name, also in the environment, is said before a model is loaded
            request.requested()
            yield
    finally:
        torch.set_num_threads(before)


def check_before_loading(model: EncodecModel | str | os.PathLike[str], device: str | Sequence[str], bandwidth: float) -> None:
    """Raises ValueError for a device that is not there, and a bandwidth that the model lacks; loads no weights.

    The bandwidth is checked where the model's config is on this machine.
    """
    for each in [device] if isinstance(device, str) else device:
        torch_device(each)
    if isinstance(model, str | os.PathLike):
        config = known_config(os.fspath(model))
    else:
        # a model of another class is spoken of by what loads it
        config = model.config if isinstance(model, EncodecModel) else None
    if config is not None:
        check_bandwidth(config, bandwidth)


def loaded_model(model: EncodecModel | str | os.PathLike[str], device: str | Sequence[str], named: bool) -> tuple[EncodecModel, str]:
    """Returns the model, on the first device, and its id.  named: other processes are to load it by the id.

    Raises ModelNotFound, ValueError for a device that is not there, TypeError for a model of another class.
    """
    devices = [device] if isinstance(device, str) else list(device)
    for each in devices:
        torch_device(each)
    if isinstance(model, str | os.PathLike):
        loaded = load_model(model, devices[0])
        return loaded, loaded.name_or_path
    if not isinstance(model, EncodecModel):
        raise TypeError(
            f"model is a {type(model).__name__}; a name, a folder or an encodec_fast.EncodecModel is needed "
            "(encodec_fast.accelerate makes one of a transformers.EncodecModel)."
        )
    if named and not model.name_or_path:
        raise ValueError("model was not loaded by a name, and other processes have to load it; save it, and give the folder.")
    if not named and devices[0] != "auto":
        raise ValueError(f"device is {devices[0]!r}, and model is in memory on {model.device}; leave out device, or move the model.")
    return model, model.name_or_path or UNNAMED


@contextlib.contextmanager
def naming_stops(out: os.PathLike[str]) -> Iterator[None]:
    """Turns what the machine does to a run into RunStopped, with one line that says what.  out: named where an error names no file."""
    try:
        yield
    except (DeviceError, RayLost) as error:
        raise RunStopped(str(error)) from error
    # the first is somebody else's pipe, such as that of a callback which prints; the others speak of arguments
    except (BrokenPipeError, RayError, request.BackendError):
        raise
    except OSError as error:
        raise RunStopped(f"{error.filename or out}: {error.strerror or error}.") from error
    except RuntimeError as error:
        if not is_lost_gpu(error):
            raise
        raise RunStopped(f"{first_line(error)}.") from error
