"""Import of a checkpoint beside reading its file from the disk."""

import os
import tempfile
from pathlib import Path
from statistics import median

import jax
import numpy as np

from mtx.bench.clock import interleaved
from mtx.bench.row import Row, Target, compared
from mtx.models.build import build
from mtx.models.families.known import families
from mtx.parallel.mesh import make_mesh
from mtx.pretrained.lazy import Made
from mtx.pretrained.stream import parts, read_params, write_folder
from mtx.pretrained.tensors import open_tensors
from mtx.training.parameters import blueprint

NAME, UNIT, TARGET = "importing", "MB/s", Target(0.5)
READ = 16 * 2**20  # bytes of one sequential read
VOCABULARY = 32000


def importing(*, megabytes: int = 1000, width: int = 1024, repeats: int = 3, folder: Path | None = None) -> Row:
  """Megabytes a second from a folder to arrays on the devices; peer: reading its file front to back.

  Opening and checking the header count. The model is a Llama in float32 with as many layers as give that size, so that
  every matrix is transposed on the way. Before each run the file's pages are dropped from memory where the system
  allows that.

  Args:
    width: d_model, a multiple of 32.
    folder: where the file is made; None = the system's temporary folder.
  """
  hidden = 11 * width // 4
  layer = 4 * (4 * width**2 + 3 * width * hidden + 2 * width)
  layers = max(1, round((megabytes * 1e6 - 4 * VOCABULARY * width) / layer))
  family = families()["llama"]
  hf = {"hidden_size": width, "intermediate_size": hidden, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_hidden_layers": layers, "vocab_size": VOCABULARY,
        "tie_word_embeddings": True}  # fmt: skip
  config = family.config(hf)
  config.architecture = "causal"
  model, names, mesh = blueprint(lambda rngs: build(config, rngs=rngs)), family.names(config), make_mesh()
  rng = np.random.default_rng(0)

  def draw(shape: tuple[int, ...]) -> Made:
    return Made(shape, np.float32, lambda: rng.random(shape, np.float32))

  with tempfile.TemporaryDirectory(dir=folder) as place:
    tensors = {part.theirs: draw(tuple(part.name.stored_shape(part.shape))) for part in parts(names, model.shapes)}
    (file,) = write_folder(place, tensors, max_shard_bytes=2**62)
    size, cold = file.stat().st_size, []

    def load() -> None:
      cold.append(_drop(file))
      params, report = read_params(open_tensors(place), names, model.shapes, model.shardings(mesh))
      jax.block_until_ready(params)
      report.check(place)

    def read() -> None:
      cold.append(_drop(file))
      part = bytearray(READ)
      with file.open("rb", buffering=0) as opened:
        while opened.readinto(part):
          pass

    seconds = interleaved({"ours": load, "peer": read}, repeats)
  ours, peer = (size / median(seconds[name]) / 1e6 for name in ("ours", "peer"))
  pages = "cold (pages dropped before every run)" if all(cold) else "warm (this system does not drop pages)"
  devices = f"{len(jax.devices())} {jax.devices()[0].platform} devices"
  return compared(
    NAME,
    UNIT,
    ours,
    peer,
    TARGET,
    f"Llama of {layers} layers, {size / 1e6:.0f} MB float32, onto {devices}; peer: reading the file in parts of "
    f"{READ >> 20} MiB; {pages}; median of {repeats}",
  )


def _drop(file: Path) -> bool:
  """Drops a file's pages from memory; whether none of some that are tried is left there."""
  if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
    return False
  with file.open("rb", buffering=0) as opened:
    descriptor, size = opened.fileno(), file.stat().st_size
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    for at in range(0, size, max(1, size // 64)):
      try:
        if os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT):
          return False
      except BlockingIOError:
        pass  # not in memory
      except OSError:
        return False  # the file system does not say
  return True
