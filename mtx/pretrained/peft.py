"""Adapters in the format of the library peft: LoRA as LoRA, MHR and Poly as its Poly.

A folder holds adapter_config.json and adapter_model.safetensors, whose tensors are

    base_model.model.MODULE.lora_A.weight                    [r, in]
    base_model.model.MODULE.lora_B.weight                    [out, r]
    base_model.model.MODULE.poly_lora_A                      [splits, skills, in/splits, r]
    base_model.model.MODULE.poly_lora_B                      [splits, skills, r, out/splits]
    base_model.model.MODULE.poly_router.module_logits        [tasks, splits * skills]

Names of tasks, for which peft has no place, lie in tasks.json beside them.

Where a checkpoint holds several of our projections in one module (q, k and v of GPT-2, GPT-NeoX, BLOOM and Phi-3), LoRA
of that module is LoRA of each with the same A and its columns of B; and ours are one of theirs, whose rank is the sum
of the ranks of different A's. Modules with a smaller rank are filled up with zeros, so that all have one.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Shaped
from ml_collections import ConfigDict

from mtx.adapters.site import Injection
from mtx.errors import UserError, did_you_mean
from mtx.models.families.family import Family, Name
from mtx.pretrained.safetensors_file import open_file
from mtx.pretrained.stream import write_folder
from mtx.training.parameters import Blueprint, Params

ADAPTER_CONFIG, TENSORS, TASKS = "adapter_config.json", "adapter_model.safetensors", "tasks.json"
PREFIX = "base_model.model."
Host = Shaped[np.ndarray, "..."]


class Kind(NamedTuple):
  """One kind of adapter: its method here and its tensors there.

  Attributes:
    method: name of the adapter class.
    endings: our parameter of a site -> what follows the module in a tensor's name.
  """

  method: str
  endings: dict[str, str]


KINDS = {
  "LORA": Kind("LoRA", {"a": ".lora_A.weight", "b": ".lora_B.weight"}),
  "POLY": Kind("MHR", {"a": ".poly_lora_A", "b": ".poly_lora_B", "router": ".poly_router.module_logits"}),
}
# Settings that change what an adapter computes, with the values that mean that they are off.
OFF: dict[str, tuple[Any, ...]] = {
  "use_dora": (False, None),
  "lora_bias": (False, None),
  "bias": ("none", None),
  "modules_to_save": (None, []),
  "rank_pattern": (None, {}),
  "alpha_pattern": (None, {}),
  "layer_replication": (None,),
  "trainable_token_indices": (None,),
  "target_parameters": (None, []),
  "use_qalora": (False, None),
  "alora_invocation_tokens": (None,),
}
TASK_TYPES = {"encdec": "SEQ_2_SEQ_LM", "causal": "CAUSAL_LM", "prefix": "CAUSAL_LM"}


def base_of(folder: Path) -> Path:
  """The folder of the model that adapters belong to.

  Raises:
    UserError: adapter_config.json does not name a folder on this machine.
  """
  name = str(_config(folder).get("base_model_name_or_path") or "")
  for place in (Path(name).expanduser(), folder / name):
    if name and place.exists():
      return place
  raise UserError(
    f"{folder / ADAPTER_CONFIG}: 'base_model_name_or_path' is {name!r}, which is not on this machine.",
    hint=f"name the model's folder: mtx import MODEL --adapter {folder} --out FOLDER",
  )


def _config(folder: Path) -> dict[str, Any]:
  file = folder / ADAPTER_CONFIG
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    return dict(found)
  except (OSError, ValueError, TypeError) as error:
    raise UserError(f"{file} can not be read: {error}.", hint="is it a folder that peft wrote?") from error


def kernels(names: Sequence[Name]) -> dict[str, Name]:
  """Site -> the line of its kernel in a family's table."""
  return {n.ours.removesuffix("/kernel"): n for n in reversed(names) if n.ours.endswith("/kernel")}


def _module(line: Name) -> str:
  return line.theirs.removesuffix(".weight")


def _pattern(line: Name, layer: str = r"\d+") -> str:
  """A regular expression of the names of its module."""
  return re.escape(_module(line)).replace(r"\{layer\}", layer)


def _fused(line: Name) -> bool:
  """Whether a module holds more than this kernel."""
  return bool(line.take) or line.shape is not None or line.stored is not None


def _conv1d(line: Name) -> bool:
  """Whether a module's weight is [in, out], and not [out, in]."""
  return not line.order or line.order[0] == 0


def _of_b(line: Name, rank: int) -> Name:
  """Where a site's b [rank, out] lies in its module's B, [out, rank] or that of a Conv1D transposed: as the kernel lies
  in the weight."""
  narrow = lambda sizes: sizes and ((rank, *sizes[1:]) if _conv1d(line) else (*sizes[:-1], rank))
  return replace(line, stored=narrow(line.stored), shape=narrow(line.shape))


def read_peft(
  folder: Path, family: Family, sizes: ConfigDict, base: Blueprint
) -> tuple[Injection, tuple[str, ...], dict[str, Host]]:
  """Adapters of a folder for our sites.

  A layer that has none gets one that adds nothing. LoRA with `use_rslora` becomes LoRA with another alpha.

  Returns:
    How they are hung on, the tasks of their routers, and every parameter of theirs by path.

  Raises:
    UserError: a method or setting that mtx has not, or a module that is no site of ours; names it.
  """
  config, place = _config(folder), folder / ADAPTER_CONFIG
  kind = KINDS.get(str(config.get("peft_type")))
  if kind is None:
    raise UserError(
      f"{place}: peft_type {config.get('peft_type')!r} is not known.",
      hint=did_you_mean(str(config.get("peft_type")), KINDS),
    )
  for key, off in OFF.items():
    if config.get(key) not in off:
      raise UserError(f"{place}: {key!r} is {config[key]!r}, which mtx does not do.", hint="merge it with peft first")
  settings, tasks = _settings(kind, config, folder)
  shapes = {path: shape for path, shape in base.shapes.items() if path.endswith("/kernel")}
  arrays: dict[str, Host] = {}
  known = kernels(family.names(sizes))
  for name, tensor in open_file(folder / TENSORS).items():
    theirs = np.asarray(tensor[...])
    for site, layer, which in _placed(folder, name, kind, family, known):
      line = next(line for each, line in known.items() if _layer(each, site) is not None)
      path, kernel = f"{site}/adapter/{which}", shapes[f"{site}/kernel"].shape
      try:
        value = _ours(theirs, kind, which, settings, line, kernel[-1])
      except (ValueError, IndexError) as error:
        raise UserError(f"{folder / TENSORS}: tensor `{name}` has shape {theirs.shape}, not {site}'s.") from error
      if layer is None:
        arrays[path] = value
        continue
      whole = arrays.setdefault(path, np.zeros((kernel[0], *value.shape), value.dtype))
      if whole.shape[1:] != value.shape or layer >= len(whole):
        raise UserError(f"{folder / TENSORS}: tensor `{name}` has shape {value.shape} here, others {whole.shape[1:]}.")
      whole[layer] = value
  if not arrays:
    raise UserError(f"{folder / TENSORS} has no adapters.", hint="is it a folder that peft wrote?")
  sites = sorted({path.partition("/adapter/")[0] for path in arrays})
  return Injection("|".join(map(re.escape, sites)), max(1, len(tasks)), kind.method, settings), tasks, arrays


def _settings(kind: Kind, config: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Settings of our method, and names of its tasks."""
  try:
    rank = int(config["r"])
    if kind.method == "LoRA":
      alpha = float(config.get("lora_alpha") or rank)
      return {"rank": rank, "alpha": alpha * rank**0.5 if config.get("use_rslora") else alpha}, ()
    settings = {"rank": rank, "skills": int(config["n_skills"]), "splits": int(config["n_splits"])}
    tasks = tuple(f"task_{i}" for i in range(int(config["n_tasks"])))
  except (KeyError, ValueError, TypeError) as error:
    raise UserError(f"{folder / ADAPTER_CONFIG} lacks a setting or has a wrong one: {error}.") from error
  if (folder / TASKS).is_file():
    written = tuple(map(str, json.loads((folder / TASKS).read_text(encoding="utf-8"))))
    if len(written) != len(tasks):
      raise UserError(f"{folder / TASKS} names {len(written)} tasks, and 'n_tasks' is {len(tasks)}.")
    tasks = written
  return settings, tasks


def _layer(site: str, written: str) -> str | None:
  """The layer of `written`, "" if it has none in its name, None if it is another site than `site`."""
  found = re.fullmatch(re.escape(site).replace(r"\{layer\}", r"(\d+)"), written)
  return None if found is None else (found.groups() or ("",))[0]


def _placed(
  folder: Path, name: str, kind: Kind, family: Family, known: Mapping[str, Name]
) -> list[tuple[str, int | None, str]]:
  """(site, layer, our parameter) of a tensor; several sites where its module holds several of our projections."""
  plain = name.removeprefix(PREFIX).replace(".default", "")
  for which, ending in kind.endings.items():
    if plain.endswith(ending):
      module = family.spelled(f"{plain.removesuffix(ending)}.weight").removesuffix(".weight")
      sites = []
      for site, line in known.items():
        found = re.fullmatch(_pattern(line, r"(\d+)"), module)
        if found and not (_fused(line) and kind.method == "MHR"):
          layer = int(found[1]) if found.groups() else None
          sites.append((site.replace("{layer}", str(layer)), None if "{layer}" in site else layer, which))
      if not sites:
        raise UserError(
          f"{folder / TENSORS}: module `{module}` is no projection of its own in mtx.",
          hint="merge the adapters with peft first: model.merge_and_unload().save_pretrained(NEW)",
        )
      return sites
  raise UserError(f"{folder / TENSORS}: tensor `{name}` is none of {kind.method}'s.", hint="merge it with peft first")


def _ours(value: Host, kind: Kind, which: str, settings: Mapping[str, Any], line: Name, out: int) -> Host:
  """Our parameter of a site with `out` columns."""
  if kind.method == "LoRA":
    if which == "a":
      return value.T
    return _of_b(line, value.shape[1]).read(value.T if _conv1d(line) else value, (value.shape[1], out))
  return value.reshape(len(value), settings["splits"], settings["skills"]) if which == "router" else value


class Hung:
  """Arrays of a base, and of adapters beside it."""

  def __init__(self, base: Any, adapters: Mapping[str, Host]):
    self._base, self._adapters = base, adapters

  @property
  def unused(self) -> tuple[str, ...]:
    return self._base.unused

  def stored(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    own = {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in self._adapters.items() if p in shapes}
    return {**self._base.stored({p: s for p, s in shapes.items() if p not in own}), **own}

  def read(self, shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, Sharding]) -> Params:
    for path in shapes.keys() & self._adapters.keys():
      if shapes[path].shape != self._adapters[path].shape:
        raise UserError(f"{path}: adapters {self._adapters[path].shape}, model {shapes[path].shape}.")
    mine = {p: self._adapters[p].astype(s.dtype) for p, s in shapes.items() if p in self._adapters}
    placed = {p: jax.device_put(value, shardings[p]) for p, value in mine.items()}
    return {**self._base.read({p: s for p, s in shapes.items() if p not in mine}, shardings), **placed}


def write_peft(
  folder: Path,
  family: Family,
  names: Sequence[Name],
  params: Mapping[str, jax.Array],
  injections: Sequence[Injection],
  tasks: Sequence[str],
  *,
  architecture: str,
  base: str | None = None,
) -> None:
  """Writes the adapters of a model.

  Args:
    params: of the model, adapters among them.
    base: where peft finds the model that they belong to.

  Raises:
    UserError: no adapters, several kinds of them, or MHR on a site that is no module of its own in the family's
      checkpoints.
  """
  methods = {each.method for each in injections}
  kinds = {kind.method: (name, kind) for name, kind in KINDS.items()}
  if not methods:
    raise UserError("the model has no adapters.", hint="export it without --adapters peft")
  if len(injections) > 1 or not methods <= kinds.keys():
    shown = ", ".join(sorted(str(each) for each in methods))
    raise UserError(f"peft has no format for these adapters: {shown}.", hint="--adapters merged folds them in")
  [injection] = injections
  peft_type, kind = kinds[str(injection.method)]
  known = kernels(names)
  hung: dict[str, list[Hanging]] = defaultdict(list)
  for path in sorted({p.partition("/adapter/")[0] for p in params if "/adapter/" in p}):
    site = next(each for each in known if _layer(each, path) is not None)
    line = known[site]
    if kind.method == "MHR" and (_fused(line) or _conv1d(line)):
      why = "a part of" if _fused(line) else "not a torch.nn.Linear:"
      raise UserError(
        f"site {path} is {why} `{_module(line)}` in {family.name} checkpoints: peft can not hang an adapter of this "
        "kind on it.",
        hint="--adapters merged folds them in",
      )
    arrays = {which: _host(params[f"{path}/adapter/{which}"]) for which in kind.endings}
    stacked = "{layer}" in line.theirs and site == path
    for layer in range(len(arrays["a"])) if stacked else [_layer(site, path)]:
      module = _module(line).replace("{layer}", str(layer))
      hung[module].append(Hanging(line, {w: each[layer] if stacked else each for w, each in arrays.items()}))
  settings = injection.settings
  config: dict[str, Any] = {
    "peft_type": peft_type,
    "task_type": TASK_TYPES[architecture],
    "base_model_name_or_path": base,
    "inference_mode": True,
    "r": settings["rank"],
    # The whole name of every module, as a regular expression.
    "target_modules": "|".join(sorted({_pattern(each.line) for found in hung.values() for each in found})),
  }
  tensors: dict[str, Host] = {}
  if kind.method == "LoRA":
    config["r"] = max(settings["rank"] * len(_different(found)) for found in hung.values())
    alpha = settings["rank"] if settings["alpha"] is None else settings["alpha"]
    conv1d = {_conv1d(each.line) for found in hung.values() for each in found}
    config |= {"lora_alpha": alpha * config["r"] / settings["rank"], "lora_dropout": 0.0, "bias": "none"}
    config["fan_in_fan_out"] = conv1d == {True}
    for module, found in hung.items():
      for which, value in zip("ab", _one_lora(found, config["r"]), strict=True):
        tensors[f"{PREFIX}{module}{kind.endings[which]}"] = value
  else:
    config |= {"poly_type": "poly", "n_tasks": injection.tasks, "n_skills": settings["skills"]}
    config["n_splits"] = settings["splits"]
    for module, [each] in hung.items():
      for which, value in each.arrays.items():
        theirs = value.reshape(len(value), -1) if which == "router" else value
        tensors[f"{PREFIX}{module}{kind.endings[which]}"] = theirs
  write_folder(folder, tensors, stem=TENSORS.removesuffix(".safetensors"), max_shard_bytes=2**62)
  if kind.method == "MHR" and tasks:
    (folder / TASKS).write_text(json.dumps(list(tasks), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
  (folder / ADAPTER_CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


class Hanging(NamedTuple):
  """An adapter of one layer, and the line of the kernel that it hangs on. Several may hang on one module."""

  line: Name
  arrays: dict[str, Host]


def _host(array: jax.Array) -> Host:
  value = np.asarray(array)
  return value.astype(np.float32) if value.dtype.name == "bfloat16" else value


def _different(found: Sequence[Hanging]) -> list[Host]:
  """The A's of a module's adapters, each once."""
  kept: list[Host] = []
  for each in found:
    if not any(np.array_equal(each.arrays["a"], a) for a in kept):
      kept.append(each.arrays["a"])
  return kept


def _one_lora(found: Sequence[Hanging], rank: int) -> tuple[Host, Host]:
  """A [rank, in] and B [out, rank] of a module that do what all its adapters do."""
  a = np.concatenate(_different(found), axis=1)
  columns = []
  for shared in _different(found):
    same = [each for each in found if np.array_equal(each.arrays["a"], shared)]
    lines = [_of_b(each.line, shared.shape[1]) for each in same]
    part = np.zeros(lines[0].stored_shape(same[0].arrays["b"].shape), a.dtype)
    for line, each in zip(lines, same, strict=True):
      line.write(part, each.arrays["b"])
    columns.append(part.T if _conv1d(same[0].line) else part)
  b = np.concatenate(columns, axis=1)
  missing = ((0, 0), (0, rank - a.shape[1]))
  return np.ascontiguousarray(np.pad(a, missing).T), np.pad(b, missing)
