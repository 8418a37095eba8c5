"""Parameters from a checkpoint's tensors and back, by a family's table of names, a block at a time."""

import json
import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from mtx.errors import UserError
from mtx.models.families.family import Name
from mtx.pretrained.blocks import Host, Index, ahead, buffer, cut, fill, update, zeros
from mtx.pretrained.lazy import Lazy, Made, Tensors
from mtx.pretrained.safetensors_file import INDEX, aligned, split, write_file
from mtx.training.parameters import Params

BLOCK = 128 * 2**20  # bytes of host memory at most that one thread fills before they go to an accelerator
THREADS = min(4, os.cpu_count() or 1)
SHARD = 5 * 10**9  # bytes of one file on export


@dataclass(frozen=True)
class Part:
  """One layer of one of our arrays, and the tensor that it lies in.

  Attributes:
    ours: path of the parameter.
    layer: index into the leading axis of a stacked parameter; None where it is not stacked.
    theirs: name of the tensor.
    name: line of the family's table.
    shape: ours, without the axis of layers.
  """

  ours: str
  layer: int | None
  theirs: str
  name: Name
  shape: tuple[int, ...]

  def view(self, theirs: Lazy, index: Index) -> Host:
    """ours[index] of this layer. Of an array that is not in memory or mapped, no more is read than the index asks for,
    unless it is reshaped."""
    name = self.name
    if not isinstance(theirs, np.ndarray):
      order = name.order or tuple(range(len(self.shape)))
      if name.shape is None and not name.take and len(theirs.shape) == len(self.shape):
        return theirs[tuple(index[order.index(axis)] for axis in range(len(order)))].transpose(order)
      theirs = np.asarray(theirs[...])
    return name.read(theirs, self.shape)[index]


@dataclass(frozen=True)
class Report:
  """What an import left open.

  Attributes:
    unused: tensors of the checkpoint that no name of the family is.
    missing: parameter -> the tensors that it lacks; () where the family has no name for it.
  """

  unused: tuple[str, ...]
  missing: dict[str, tuple[str, ...]]

  def check(self, path: str | Path) -> None:
    """Raises UserError if parameters are missing; lists them, and what is left over."""
    if not self.missing:
      return
    lines = [f"{ours}: {', '.join(theirs[:3]) or 'no name'}{' ...' * (len(theirs) > 3)}"
             for ours, theirs in sorted(self.missing.items())]  # fmt: skip
    left = f"it has, unused: {', '.join(self.unused[:10])}{' ...' * (len(self.unused) > 10)}" if self.unused else ""
    raise UserError(f"{path} lacks tensors of {len(lines)} parameters:\n  " + "\n  ".join(lines[:20]),
                    hint=left or "does config.json belong to these weights?")  # fmt: skip


def parts(names: Iterable[Name], shapes: Mapping[str, Any]) -> Iterator[Part]:
  """Every line of a family's table for every layer of a model; lines of parameters that it lacks are left out.

  Args:
    shapes: path -> anything with a shape.
  """
  for name in names:
    if "{layer}" in name.ours:
      layer = 0
      while (path := name.ours.replace("{layer}", str(layer))) in shapes:
        yield Part(path, None, name.theirs.replace("{layer}", str(layer)), name, tuple(shapes[path].shape))
        layer += 1
    elif name.ours in shapes:
      shape = tuple(shapes[name.ours].shape)
      if "{layer}" in name.theirs:
        for layer in range(shape[0]):
          yield Part(name.ours, layer, name.theirs.replace("{layer}", str(layer)), name, shape[1:])
      else:
        yield Part(name.ours, None, name.theirs, name, shape)


def read_params(
  tensors: Tensors,
  names: Sequence[Name],
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  shardings: Mapping[str, Sharding],
  dtype: Any = None,
) -> tuple[Params, Report]:
  """Parameters as they lie in a checkpoint, born sharded; each host reads its shards' slices and nothing else.

  Beside the arrays themselves this takes THREADS blocks of host memory, and a tensor where a name reshapes one that is
  not in memory or can not be reshaped in place. On an accelerator a shard that is larger than BLOCK is made on the
  device and filled block by block. On the CPU the shard's own memory is filled.

  Args:
    names: the family's table.
    shapes, shardings: of the parameters wanted (`Blueprint.shapes`, `Blueprint.shardings(mesh)`).
    dtype: of floating parameters; None = that of `shapes`.

  Returns:
    Parameters by path without those that lack a tensor, and what was missing or left over.

  Raises:
    UserError: a tensor's shape is not the model's, its dtype can not become the parameter's, or two tensors that the
      family says are one differ; names file, tensor and both shapes.
  """
  wanted = {path: np.dtype(dtype) if dtype is not None and jnp.issubdtype(s.dtype, jnp.floating) else np.dtype(s.dtype)
            for path, s in shapes.items()}  # fmt: skip
  found: dict[str, list[list[Part]]] = defaultdict(list)
  lacking: dict[str, tuple[str, ...]] = defaultdict(tuple)
  named: set[str] = set()
  for (path, _), group in _grouped(parts(names, shapes)).items():
    present = [part for part in group if part.theirs in tensors]
    named.update(part.theirs for part in group)
    for part in present:
      _check(tensors, part, wanted[path])
    found[path].append(present)
    if not present:
      lacking[path] += (group[0].theirs,)
  missing = {path: lacking[path] for path in shapes if path in lacking or path not in found}
  report = Report(tuple(name for name in tensors if name not in named), missing)
  read = {path: layers for path, layers in found.items() if path not in missing}
  with ThreadPoolExecutor(THREADS) as threads:
    pending = {}
    try:
      for path, layers in read.items():
        shape = tuple(shapes[path].shape)
        places = _places(shardings[path], shape)
        pending[path] = [
          threads.submit(_place, tensors, layers, index, wanted[path], devices) for index, devices in places
        ]
      params: Params = {}
      for path, futures in pending.items():
        pieces = [piece for future in futures for piece in future.result()]
        params[path] = jax.make_array_from_single_device_arrays(tuple(shapes[path].shape), shardings[path], pieces)
        futures.clear()
    except BaseException:
      threads.shutdown(cancel_futures=True)
      raise
  return params, report


def _grouped(found: Iterable[Part]) -> dict[tuple[str, int | None], list[Part]]:
  """Parts that are the same layer of the same parameter: more than one where a checkpoint may hold it twice."""
  groups: dict[tuple[str, int | None], list[Part]] = defaultdict(list)
  for part in found:
    groups[part.ours, part.layer].append(part)
  return groups


def _check(tensors: Tensors, part: Part, wanted: np.dtype) -> None:
  """Raises UserError unless the tensor has the shape that the model wants and a dtype that can become `wanted`."""
  theirs = tensors[part.theirs]
  expected = tuple(part.name.stored_shape(part.shape))
  if tuple(theirs.shape) != expected:
    raise UserError(
      f"{tensors.where(part.theirs)} has shape {tuple(theirs.shape)}; the model's {part.ours} wants {expected}.",
      hint="config.json and weights do not belong together, or the vocabulary has another size",
    )
  has = np.dtype(theirs.dtype)
  floats = all(jnp.issubdtype(d, jnp.floating) and d.itemsize > 1 for d in (has, wanted))
  if has != wanted and not floats:
    raise UserError(
      f"{tensors.where(part.theirs)} has dtype {has}; the model's {part.ours} wants {wanted}.",
      hint="quantised weights are not read: export them in float16, bfloat16 or float32",
    )


def _places(sharding: Sharding, shape: tuple[int, ...]) -> list[tuple[Index, list[jax.Device]]]:
  """Every slice of an array that this host holds, with the devices that hold it."""
  places: dict[tuple, tuple[Index, list[jax.Device]]] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    whole = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index or (), shape, strict=True))
    key = tuple((part.start, part.stop) for part in whole)
    places.setdefault(key, (whole, []))[1].append(device)
  return list(places.values())


def _place(
  tensors: Tensors, layers: list[list[Part]], index: Index, dtype: np.dtype, devices: list[jax.Device]
) -> list[Array]:
  """One slice of a parameter on every device that holds it."""
  size = _size(index)
  first = devices[0]
  if first.platform == "cpu" or int(np.prod(size)) * dtype.itemsize <= BLOCK:
    block = _block(tensors, layers, index, dtype)
    return [jax.block_until_ready(jax.device_put(block, device)) for device in devices]
  piece = zeros(size, dtype, first)
  for part in cut(index, dtype.itemsize, BLOCK):
    start = tuple(np.int32(p.start - whole.start) for p, whole in zip(part, index, strict=True))
    piece = update(piece, jax.device_put(_block(tensors, layers, part, dtype), first), start)
    jax.block_until_ready(piece)  # else blocks pile up on the device
  return [jax.device_put(piece, device) for device in devices]


def _size(index: Index) -> tuple[int, ...]:
  return tuple(part.stop - part.start for part in index)


def _block(tensors: Tensors, layers: list[list[Part]], index: Index, dtype: np.dtype) -> Host:
  """ours[index] in memory of its own."""
  out = buffer(_size(index), dtype)
  if layers[0][0].layer is None:
    steps = [(out, layers[0], index)]
  else:
    steps = [(out[row], layers[n], index[1:]) for row, n in enumerate(range(index[0].start, index[0].stop))]
  for number, (to, same, inner) in enumerate(steps):
    if number + 1 < len(steps) and isinstance(following := tensors[steps[number + 1][1][0].theirs], np.ndarray):
      ahead(following)
    value = same[0].view(tensors[same[0].theirs], inner)
    if number == 0:
      ahead(value)
    fill(to, value)
    for twin in same[1:]:
      if not _equal(value, twin.view(tensors[twin.theirs], inner)):
        raise UserError(
          f"{tensors.where(twin.theirs)} differs from `{same[0].theirs}`, and the model has one array for both.",
          hint="does config.json say `tie_word_embeddings` where the weights are not tied?",
        )
  return out


def _equal(a: Host, b: Host) -> bool:
  """Bitwise, some megabytes at a time."""
  if a.dtype != b.dtype or not a.ndim:
    return bool(np.array_equal(a, b))
  a, b = (x.view(f"u{x.itemsize}") for x in (a, b))
  rows = max(1, 2**24 // max(1, a[:1].nbytes))
  return all(np.array_equal(a[n : n + rows], b[n : n + rows]) for n in range(0, len(a), rows))


def exported(
  params: Mapping[str, Array], names: Sequence[Name], *, like: Mapping[str, Lazy] | None = None, dtype: Any = None
) -> dict[str, Lazy]:
  """A model's tensors under a family's names: the inverse of `read_params`, each made when it is asked for.

  Args:
    like: the checkpoint that the model came from. Its tensors' names, order and dtypes are kept, optional ones too, and
      so are tensors that the family does not know; what it lacks follows. Without it optional names are left out.
    dtype: of floating tensors without `like`; None = as they are.

  Raises:
    ValueError: the table covers a part of a tensor only.
  """
  tables: dict[str, list[Part]] = defaultdict(list)
  for group in _grouped(parts(names, params)).values():
    needed = [part for part in group if not part.name.optional] or group[:1]
    for part in [part for part in group if like is not None and part.theirs in like] or needed:
      tables[part.theirs].append(part)
  made: dict[str, Lazy] = {}
  for theirs, found in tables.items():
    shape = tuple(found[0].name.stored_shape(found[0].shape))
    if like is not None and theirs in like:
      kind = np.dtype(like[theirs].dtype)
    else:
      kind = np.dtype(params[found[0].ours].dtype)
      kind = np.dtype(dtype) if dtype is not None and jnp.issubdtype(kind, jnp.floating) else kind
    covered = sum(int(np.prod(part.shape)) for part in found)
    if covered != int(np.prod(shape)):
      raise ValueError(f"{theirs} {shape}: {covered} of {int(np.prod(shape))} numbers have a name")
    made[theirs] = Made(shape, kind, lambda found=found, shape=shape, kind=kind: _tensor(params, found, shape, kind))  # type: ignore[misc]
  return {theirs: made.get(theirs, array) for theirs, array in (like or {}).items()} | made


def _tensor(params: Mapping[str, Array], found: list[Part], shape: tuple[int, ...], dtype: np.dtype) -> Host:
  out = np.empty(shape, dtype)
  for part in found:
    view = part.name.view(out)
    fill(view, _fetch(params[part.ours], part.layer).reshape(view.shape))
  return out


def _fetch(array: Array | Host, layer: int | None) -> Host:
  """One layer of an array, or all of it, on this host, wherever its shards are."""
  if isinstance(array, np.ndarray):
    return array if layer is None else array[layer]
  if not array.is_fully_addressable:
    whole = NamedSharding(array.sharding.mesh, P()) if isinstance(array.sharding, NamedSharding) else None
    return np.asarray(_taker(whole)(array, layer).addressable_data(0))
  out = np.empty(array.shape if layer is None else array.shape[1:], array.dtype)
  for shard in array.addressable_shards:
    if shard.replica_id:
      continue
    if layer is None:
      out[shard.index] = np.asarray(shard.data)
    elif layer in (rows := range(*shard.index[0].indices(array.shape[0]))):
      out[shard.index[1:]] = np.asarray(_taker(None)(shard.data, layer - rows.start))
  return out


@cache
def _taker(whole: Sharding | None) -> Callable[[Array, int | None], Array]:
  """Compiled (array, layer) -> the array or one layer of it, put as `whole` says."""

  def take(array: Array, layer: Array | None) -> Array:
    return array if layer is None else jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)

  return jax.jit(take, out_shardings=whole)


def write_folder(
  folder: str | Path, tensors: Mapping[str, Lazy] | Iterable[tuple[str, Lazy]], max_shard_bytes: int = SHARD,
  *, stem: str = "model",
) -> list[Path]:  # fmt: skip
  """Writes safetensors, in shards with an index where they are larger than `max_shard_bytes`, one tensor at a time.

  Every process calls it, and the first one writes. Files appear when they are whole, the index last.

  Args:
    tensors: name -> array, or pairs; lazy ones are made when their turn comes.
    stem: of the file names.

  Returns:
    The files, index included.

  Raises:
    UserError: the folder has weights already, or a tensor's dtype is one that safetensors has not.
  """
  folder, tensors = Path(folder), dict(tensors)
  old = sorted(folder.glob(f"{stem}*.safetensors*"))
  if old:
    raise UserError(f"{folder} has {old[0].name} already.", hint="choose another folder, or move it away")
  groups = list(split(tensors, max_shard_bytes)) or [[]]
  one = len(groups) == 1
  files = [f"{stem}.safetensors" if one else f"{stem}-{n + 1:05d}-of-{len(groups):05d}.safetensors"
           for n in range(len(groups))]  # fmt: skip
  if jax.process_index():
    for group in groups:
      for name in aligned({name: tensors[name] for name in group}):
        tensors[name][...]  # takes part in gathering it
    return []
  folder.mkdir(parents=True, exist_ok=True)
  for file, group in zip(files, groups, strict=True):
    write_file(folder / file, {name: tensors[name] for name in group})
  written = [folder / file for file in files]
  if not one:
    where = {name: file for file, group in zip(files, groups, strict=True) for name in group}
    index = {"metadata": {"total_size": Tensors(folder, tensors).bytes}, "weight_map": dict(sorted(where.items()))}
    name = INDEX if stem == "model" else f"{stem}.safetensors.index.json"
    part = folder / f".{name}.{uuid.uuid4().hex}"
    part.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / name)
    written.append(folder / name)
  return written
