"""Programs compiled for chips that are not at hand: by libtpu for TPUs, by jax's CUDA plugin for Hopper.

What comes out is what would run there: it says whether a kernel compiles, how much memory the program takes, and what
its HLO holds. It says nothing of time.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jax.stages import Compiled

TPUS = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# libtpu asks a cloud machine's metadata server who it is, unless it is told; and a second process may not use it.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def available(chip: str) -> bool:
  """Whether what compiles for `chip` ("v5e", "v5p", "v6e" or "h200") is installed."""
  return find_spec("libtpu" if chip in TPUS else "jax_cuda12_plugin") is not None


def compiled_for(chip: str, function: Callable[..., Any], *arguments: Any) -> Compiled:
  """`jax.jit(function)` compiled for one device of a chip.

  Args:
    chip: "v5e", "v5p", "v6e" or "h200".
    arguments: arrays or `jax.ShapeDtypeStruct`s, of which only shapes and dtypes are read.

  Raises:
    ValueError: no such chip.
  """
  device = _device(chip)
  sharding = SingleDeviceSharding(device)
  shaped = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
  traced = jax.jit(function).trace(*shaped)
  if chip in TPUS:
    return traced.lower(lowering_platforms=("tpu",)).compile()
  # Autotuning would run candidates on the device.
  return traced.lower(lowering_platforms=("cuda",)).compile(compiler_options={"xla_gpu_autotune_level": "0"})


def devices(chip: str) -> list[jax.Device]:
  """The devices of a small slice of a TPU (v5e: 8, v5p and v6e: 4), for programs that are split over several."""
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  return topologies.get_topology_desc(platform="tpu", topology_name=TPUS[chip]).devices


def _device(chip: str) -> jax.Device:
  if chip in TPUS:
    return devices(chip)[0]
  if chip == "h200":
    described = (Path(__file__).parent / "h200.txtpb").read_text()
    return topologies.get_topology_desc(
      platform="cuda", topology_name="H200", topology="1x1x1", target_config=described
    ).devices[0]
  raise ValueError(f"no chip {chip!r} to compile for; there are: {', '.join((*TPUS, 'h200'))}.")
