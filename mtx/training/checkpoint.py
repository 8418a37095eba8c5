"""Orbax checkpoints of a stage: trainable parameters, optimizer, and a record (step, seed, data position, gin)."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mtx.errors import UserError
from mtx.training.state import State


@dataclass(frozen=True)
class Record:
  """What a checkpoint says beside arrays.

  Attributes:
    step: updates made. seed: of the run. data: the feed's iterator state, as `json` can hold it.
    gin: the operative config. tasks: names of the tasks, in the order of router rows.
  """

  step: int
  seed: int
  data: Any
  gin: str
  tasks: list[str]


class Checkpoints:
  """The checkpoints of one stage in one folder. Saving is asynchronous and atomic: a killed save leaves no trace.

  Args:
    folder: created when the first checkpoint is saved.
    keep: how many to keep, newest first; None keeps all.
  """

  def __init__(self, folder: Path, *, keep: int | None = 2):
    self.folder = Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
    # Without handlers a manager that has not saved yet knows nothing of what an earlier process saved.
    arrays, record = ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler
    handlers = {"train": arrays(), "opt": arrays(), "record": record()}
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

  def latest(self) -> int | None:
    return self._manager.latest_step()

  def save(self, state: State, record: Record) -> None:
    """Starts writing; returns as soon as the arrays are copied. A step that is already saved is left alone."""
    if record.step in self._manager.all_steps():
      return
    # The step donates its state, and on CPU a host view would share that memory: write from copies of our own.
    train, opt = jax.tree.map(jnp.copy, (state.train, state.opt))
    self._manager.save(
      record.step,
      args=ocp.args.Composite(
        train=ocp.args.StandardSave(_named(train)),
        opt=ocp.args.StandardSave(_named(opt)),
        record=ocp.args.JsonSave({**vars(record), "data": _encode(record.data)}),
      ),
    )

  def record(self, step: int) -> Record:
    raw = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    return Record(**{**raw, "data": _decode(raw["data"])})

  def restore(self, step: int, abstract: State, shardings: State) -> State:
    """The state as saved, placed as `shardings` say, whatever mesh it was saved from.

    Raises:
      UserError: the checkpoint is of another model; names the first parameters that differ, with both shapes.
    """
    self._check(step, "train", abstract.train)
    self._check(step, "opt", abstract.opt)
    target = {
      item: _named(jax.tree.map(_placed, getattr(abstract, item), getattr(shardings, item)))
      for item in ("train", "opt")
    }
    args = {item: ocp.args.StandardRestore(t) for item, t in target.items()}
    saved = self._manager.restore(step, args=ocp.args.Composite(**args))
    train, opt = (_unnamed(saved[item], getattr(abstract, item)) for item in ("train", "opt"))
    return State(jax.device_put(jnp.asarray(step, jnp.int32), shardings.step), train, opt)

  def restore_train(self, step: int, shapes: Mapping, shardings: Mapping) -> dict:
    """The trainable parameters alone."""
    self._check(step, "train", shapes)
    target = _named({p: _placed(s, shardings[p]) for p, s in shapes.items()})
    saved = self._manager.restore(step, args=ocp.args.Composite(train=ocp.args.StandardRestore(target)))
    return _unnamed(saved["train"], shapes)

  def wait(self) -> None:
    """Blocks until everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self.wait()
    self._manager.close()

  def _check(self, step: int, item: str, expected) -> None:
    saved = {n: tuple(m.shape) for n, m in self._manager.item_metadata(step)[item].items()}
    wanted = {n: tuple(s.shape) for n, s in _named(expected).items()}
    differ = [n for n in sorted(saved.keys() | wanted.keys()) if saved.get(n) != wanted.get(n)]
    if not differ:
      return
    lines = [f"{n}: checkpoint {saved.get(n, 'absent')}, model {wanted.get(n, 'absent')}" for n in differ[:5]]
    more = f"\n  ... and {len(differ) - 5} more" if len(differ) > 5 else ""
    raise UserError(
      f"checkpoint {self.folder / str(step)} is of another model: {len(differ)} of its {item} arrays differ:\n  "
      + "\n  ".join(lines)
      + more,
      hint="restore it with the gin file that is saved beside it, or choose another `train.run_dir`.",
    )


def _placed(shape: jax.ShapeDtypeStruct, sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _named(tree) -> dict[str, Any]:
  """Leaves by dotted path: parameter paths hold slashes, which a file name can not."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_name(path): leaf for path, leaf in leaves}


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".").replace("/", ".")


def _unnamed(named: Mapping[str, Any], like):
  return jax.tree_util.tree_map_with_path(lambda path, _: named[_name(path)], like)


def _encode(data):
  """Iterator states are JSON but for bytes."""
  if isinstance(data, bytes):
    return {"base64": base64.b64encode(data).decode()}
  return data


def _decode(data):
  if isinstance(data, dict) and set(data) == {"base64"}:
    return base64.b64decode(data["base64"])
  return data
