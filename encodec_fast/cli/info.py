"""`encodec-fast info`."""

from __future__ import annotations

import encodec_fast
from encodec_fast.cli.app import OK, command
from encodec_fast.cli.terminal import say


@command("[bold]Example[/bold]\n\nencodec-fast info")
def info() -> int:
    """Show versions, devices, and which backends can run here, or why not."""
    import os
    import platform

    import numpy
    import pyarrow
    import soundfile
    import torch
    import transformers

    from encodec_fast.backends.registry import backend_report, get_backend
    from encodec_fast.serving.request import ENVIRONMENT_VARIABLE

    lines = {
        "encodec_fast": encodec_fast.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "soundfile": f"{soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}",
        "CPU": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        "GPU": "none that torch can use",
    }
    if torch.cuda.is_available():
        lines["GPU"] = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    for name, available, reason in backend_report():
        lines[f"backend {name}"] = "yes" if available else f"no: {reason}"
        if available and len(precisions := get_backend(name).precisions) > 1:
            lines[f"backend {name}"] += f", in precision {', '.join(known.value for known in precisions)}"
    lines[ENVIRONMENT_VARIABLE] = os.environ.get(ENVIRONMENT_VARIABLE) or "not set (auto)"
    width = max(map(len, lines))
    for name, value in lines.items():
        say(f"{name:<{width}}  {value}")
    return OK
