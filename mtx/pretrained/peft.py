"""Adapters in the format of the library peft: LoRA as LoRA, MHR and Poly as its Poly.

A folder holds adapter_config.json and adapter_model.safetensors, whose tensors are

    base_model.model.MODULE.lora_A.weight                    [r, in]
    base_model.model.MODULE.lora_B.weight                    [out, r]
    base_model.model.MODULE.poly_lora_A                      [splits, skills, in/splits, r]
    base_model.model.MODULE.poly_lora_B                      [splits, skills, r, out/splits]
    base_model.model.MODULE.poly_router.module_logits        [tasks, splits * skills]

Names of tasks, for which peft has no place, lie in tasks.json beside them.
"""

import json
import re
from collections.abc import Mapping, Sequence
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


def modules(names: Sequence[Name]) -> dict[str, Name]:
  """Site -> its line in a family's table, for sites that are a module of their own in the family's checkpoints."""
  kernels = {n.ours.removesuffix("/kernel"): n for n in reversed(names) if n.ours.endswith("/kernel")}
  return {site: name for site, name in kernels.items() if not _fused(name)}


def _fused(name: Name) -> bool:
  return bool(name.take) or name.shape is not None or name.stored is not None


def read_peft(
  folder: Path, family: Family, sizes: ConfigDict, base: Blueprint
) -> tuple[Injection, tuple[str, ...], dict[str, Host]]:
  """Adapters of a folder for our sites.

  A layer that has none gets one that adds nothing. LoRA with `use_rslora` becomes LoRA with another alpha.

  Returns:
    How they are hung on, the tasks of their routers, and every parameter of theirs by path.

  Raises:
    UserError: a method or setting that mtx has not, or a module that is no site of its own; names it.
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
  known = modules(family.names(sizes))
  for name, tensor in open_file(folder / TENSORS).items():
    site, layer, which = _placed(folder, name, kind, family, known)
    value = _ours(np.asarray(tensor[...]), kind, which, settings)
    path, kernel = f"{site}/adapter/{which}", shapes[f"{site}/kernel"].shape
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


def _placed(
  folder: Path, name: str, kind: Kind, family: Family, known: Mapping[str, Name]
) -> tuple[str, int | None, str]:
  """(site, layer, our parameter) of a tensor."""
  plain = name.removeprefix(PREFIX).replace(".default", "")
  for which, ending in kind.endings.items():
    if plain.endswith(ending):
      module = family.spelled(f"{plain.removesuffix(ending)}.weight").removesuffix(".weight")
      for site, line in known.items():
        template = re.escape(line.theirs.removesuffix(".weight")).replace(r"\{layer\}", r"(\d+)")
        if found := re.fullmatch(template, module):
          layer = int(found[1]) if found.groups() else None
          return site.replace("{layer}", str(layer)), None if "{layer}" in site else layer, which
      raise UserError(
        f"{folder / TENSORS}: module `{module}` is no projection of its own in mtx.",
        hint="merge the adapters with peft first: model.merge_and_unload().save_pretrained(NEW)",
      )
  raise UserError(f"{folder / TENSORS}: tensor `{name}` is none of {kind.method}'s.", hint="merge it with peft first")


def _ours(value: Host, kind: Kind, which: str, settings: Mapping[str, Any]) -> Host:
  if kind.method == "LoRA":
    return value.T
  return value.reshape(len(value), settings["splits"], settings["skills"]) if which == "router" else value


def _theirs(value: Host, kind: Kind, which: str) -> Host:
  """The inverse of `_ours`, for one layer."""
  if kind.method == "LoRA":
    return np.ascontiguousarray(value.T)
  return value.reshape(len(value), -1) if which == "router" else value


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
    UserError: no adapters, several kinds of them, or a site that is no module of its own in the family's checkpoints.
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
  tensors: dict[str, Host] = {}
  templates: set[str] = set()
  known, wide = modules(names), {n.ours.removesuffix("/kernel"): n for n in names if n.ours.endswith("/kernel")}
  for path in sorted(p for p in params if "/adapter/" in p):
    site, which = path.split("/adapter/")
    general = next(s for s in wide if s == site or re.fullmatch(re.escape(s).replace(r"\{layer\}", r"\d+"), site))
    line = known.get(general)
    if line is None or (kind.method == "MHR" and line.order != (1, 0)):
      why = "a part of" if line is None else "not a torch.nn.Linear:"
      raise UserError(
        f"site {site} is {why} `{wide[general].theirs.removesuffix('.weight')}` in {family.name} checkpoints: peft "
        f"can not hang an adapter of this kind on it.",
        hint="--adapters merged folds them in",
      )
    module = line.theirs.removesuffix(".weight")
    templates.add(re.escape(module).replace(r"\{layer\}", r"\d+"))
    value = np.asarray(params[path])
    value = value.astype(np.float32) if value.dtype.name == "bfloat16" else value
    if general != site:
      layers = {int(re.fullmatch(re.escape(general).replace(r"\{layer\}", r"(\d+)"), site)[1]): value}  # type: ignore[index]
    else:
      layers = dict(enumerate(value)) if "{layer}" in module else {0: value}
    for layer, each in layers.items():
      name = f"{PREFIX}{module.replace('{layer}', str(layer))}{kind.endings[which]}"
      tensors[name] = _theirs(each, kind, which)
  settings = injection.settings
  config: dict[str, Any] = {
    "peft_type": peft_type,
    "task_type": TASK_TYPES[architecture],
    "base_model_name_or_path": base,
    "inference_mode": True,
    "r": settings["rank"],
    # The whole name of every module, as a regular expression.
    "target_modules": "|".join(sorted(templates)),
  }
  if kind.method == "LoRA":
    flat = {line.order != (1, 0) for line in known.values() if _matches(line, templates)}
    alpha = settings["rank"] if settings["alpha"] is None else settings["alpha"]
    config |= {"lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": flat == {True}}
  else:
    config |= {"poly_type": "poly", "n_tasks": injection.tasks, "n_skills": settings["skills"]}
    config["n_splits"] = settings["splits"]
  write_folder(folder, tensors, stem=TENSORS.removesuffix(".safetensors"), max_shard_bytes=2**62)
  if kind.method == "MHR" and tasks:
    (folder / TASKS).write_text(json.dumps(list(tasks), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
  (folder / ADAPTER_CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _matches(line: Name, templates: set[str]) -> bool:
  return re.escape(line.theirs.removesuffix(".weight")).replace(r"\{layer\}", r"\d+") in templates
