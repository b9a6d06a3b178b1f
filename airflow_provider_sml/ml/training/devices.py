"""Which device a worker trains on, and what a GPU holds.

One worker a GPU: a worker takes the first device that it sees (``CUDA_VISIBLE_DEVICES``; dask-cuda gives each of its
workers another first one). XGBoost builds a matrix on the GPU from rows that lie there already, which CuPy puts there;
without CuPy the matrix is built in the host's memory and then copied. Sources: XGBoost's documentation, "GPU Support"
and "Using XGBoost External Memory Version".
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_sml.errors import ConfigurationError

_DEVICES = ("auto", "cpu", "cuda")
_DEV = Path("/dev")


def gpus() -> list[str]:
    """The GPUs that this process sees, by number or UUID, its own one first."""
    there = sorted(path.name.removeprefix("nvidia") for path in _DEV.glob("nvidia[0-9]*"))
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not there or seen is None:
        return there
    named = [name.strip() for name in seen.split(",")]
    # CUDA ignores what follows the first device that is none
    wrong = next((place for place, name in enumerate(named) if name in ("", "-1", "NoDevFiles")), len(named))
    return named[:wrong]


def resolve_device(wanted: str) -> str:
    """The device that a worker trains on.

    :param wanted: ``auto`` for a GPU where there is one, ``cpu``, or ``cuda``.
    :raises ConfigurationError: when a GPU is asked for and there is none, or XGBoost was built without.
    """
    import xgboost

    if wanted not in _DEVICES:
        raise ConfigurationError("train.device", expected="auto, cpu or cuda", found=wanted)
    there, built = bool(gpus()), bool(xgboost.build_info().get("USE_CUDA"))
    if wanted == "cuda" and not (there and built):
        raise ConfigurationError(
            "this worker cannot train on a GPU",
            expected="a GPU, and XGBoost built for it",
            found=f"{'a' if there else 'no'} GPU, XGBoost built {'with' if built else 'without'} CUDA",
            todo="pip install 'airflow-provider-sml[xgboost-gpu]' on a machine with a GPU, or device: cpu",
        )
    return "cuda" if wanted != "cpu" and there and built else "cpu"


def agreed_device(wanted: str) -> str:
    """The device of all ranks: a GPU only where each of them has one, because they make one model together."""
    import numpy as np
    from xgboost import collective

    own = resolve_device(wanted)
    gpu = np.array([1 if own == "cuda" else 0], dtype=np.int32)
    return "cuda" if collective.allreduce(gpu, collective.Op.MIN)[0] else "cpu"


def to_device(device: str) -> Callable[[Any], Any] | None:
    """What puts an array on the GPU; None where rows stay in the host's memory.

    :param device: that is trained on.
    """
    if device != "cuda":
        return None
    try:
        import cupy
    except ImportError:
        return None
    put: Callable[[Any], Any] = cupy.asarray
    return put


def gpu_memory() -> int:
    """Bytes that are free on this process's GPU.

    :raises ConfigurationError: when nobody tells.
    """
    try:
        import cupy

        return int(cupy.cuda.Device().mem_info[0])
    except ImportError:
        pass
    first = next(iter(gpus()), "0")
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return int(told.split()[0]) * 2**20
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            "the memory of the GPU is not known", expected="an answer of CuPy or of nvidia-smi", found=error,
            todo="pip install 'airflow-provider-sml[xgboost-gpu]', or device: cpu",
        ) from error  # fmt: skip
