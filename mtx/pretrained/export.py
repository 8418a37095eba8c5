"""A model as a folder that transformers loads: config.json, safetensors, generation settings, the tokenizer's files."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.family import Family
from mtx.models.families.known import families
from mtx.pretrained.fold import folded
from mtx.pretrained.model import CONFIG, Opened
from mtx.pretrained.peft import write_peft
from mtx.pretrained.stream import exported, write_folder
from mtx.tokens.folder import FILES, find
from mtx.tokens.vocabulary import Vocabulary
from mtx.training.parameters import blueprint

ADAPTERS = ("merged", "peft", "none")
DTYPES = ("float32", "bfloat16", "float16")
GENERATION = "generation_config.json"
# Fields of a config that say how a model is trained and not what it computes.
TRAINING = {"architecture", "dropout", "dtype", "remat", "unroll", "embedding_std", "vocab_size"}
# Of a config.json, what another program wrote about itself.
FOREIGN = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "quantization_config"}


def export(
  opened: Opened, folder: str | Path, *, adapters: str | None = None, task: str | None = None, dtype: str | None = None
) -> Path:
  """Writes a model for transformers, or its adapters for peft. The folder appears when it is whole.

  Args:
    adapters: "merged" folds them into the weights, "none" leaves them out, "peft" writes them and nothing else.
      None: "merged" where there are any.
    task: whose routing is folded in.
    dtype: of floating arrays; None: as they are.

  Raises:
    UserError: the folder exists; no family has such a model, or none of peft's methods is such an adapter.
  """
  folder = Path(folder)
  if folder.exists():
    raise UserError(f"{folder} exists already.", hint="choose another folder, or move it away")
  family = opened.family or fitting(opened.config)
  unfinished = folder.with_name(f".{folder.name}.unfinished")
  shutil.rmtree(unfinished, ignore_errors=True)  # of an attempt that was killed
  unfinished.mkdir(parents=True)
  try:
    if adapters == "peft":
      found, names = opened.found, family.names(opened.config)
      base = str(found.source.get("path") or "") or None
      architecture = opened.config.architecture
      write_peft(
        unfinished, family, names, opened.params, found.injections, opened.tasks, architecture=architecture, base=base
      )
    else:
      params: Mapping[str, Array] = opened.params
      if opened.found.injections and adapters != "none":
        params = folded(opened.blueprint, params, opened.tasks, task)
      params = {path: value for path, value in params.items() if "/adapter/" not in path}
      write_hugging_face(
        unfinished, family, opened.config, params, dtype, opened.vocabulary, opened.found.hugging_face,
        opened.found.files,
      )  # fmt: skip
    os.rename(unfinished, folder)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return folder


def fitting(config: ConfigDict) -> Family:
  """The family that has such a model.

  Raises:
    UserError: none; names the one that comes nearest, and the fields in which it differs.
  """
  near: tuple[int, str] | None = None
  for family in families().values():
    if config.architecture in family.architectures:
      differing = _differing(family, config)
      if not differing:
        return family
      if near is None or len(differing) < near[0]:
        near = len(differing), f"{family.name} comes nearest, which has {', '.join(differing[:4])}"
  raise UserError(
    f"no family of transformers has such a model (architecture {config.architecture!r}).",
    hint=near[1] if near else "",
  )


def _differing(family: Family, config: ConfigDict) -> list[str]:
  """Fields of `config` that a checkpoint of the family can not say, with what it says in their place."""
  try:
    again = family.config({"model_type": family.model_types[0], **family.hf_config(config)})
  except (KeyError, StopIteration, AttributeError, TypeError, ZeroDivisionError, UserError):
    return ["other fields altogether"] * 99
  fields = [f for f in again if f not in TRAINING and again[f] != config[f]]
  said = [f"`{f}` = {again[f]!r} where this model has {config[f]!r}" for f in fields]
  if said:
    return said
  wanted = {name.ours for name in family.names(config)}
  shapes = blueprint(lambda rngs: build(config, rngs=rngs)).shapes
  return [f"no parameter {path}" for path in shapes if path not in wanted and not any("{" in name for name in wanted)]


def write_hugging_face(
  folder: Path,
  family: Family,
  config: ConfigDict,
  params: Mapping[str, jax.Array],
  dtype: str | None,
  vocabulary: Vocabulary | None,
  written: Mapping[str, Any],
  files: Path | None,
) -> None:
  """Weights and all the files beside them.

  Args:
    written: the config.json that the model came with: what the family says goes before it.
    files: folder of settings and tokenizer files to copy.
  """
  tensors = exported(params, family.names(config), dtype=dtype and jnp.dtype(dtype))
  write_folder(folder, tensors)
  kinds = {str(array.dtype) for array in tensors.values()}
  specials = _specials(vocabulary)
  hf = {
    "architectures": [family.class_name],
    "model_type": family.model_types[0],
    **specials,
    **{key: value for key, value in written.items() if key not in FOREIGN},
    **family.hf_config(config),
  }
  hf["dtype"] = next(iter(kinds)) if len(kinds) == 1 else "float32"
  _write(folder / CONFIG, hf)
  for name in FILES if files is not None else ():
    if name != CONFIG and (Path(files or "") / name).is_file():
      shutil.copyfile(Path(files or "") / name, folder / name)
  if not (folder / GENERATION).exists():
    settings = {
      key: hf[key] for key in (*specials, "decoder_start_token_id", "bos_token_id") if hf.get(key) is not None
    }
    _write(folder / GENERATION, settings)
  if vocabulary is not None and vocabulary.path is not None and find(folder) is None:
    _write_vocabulary(folder, vocabulary)


def _specials(vocabulary: Vocabulary | None) -> dict[str, Any]:
  if vocabulary is None:
    return {}
  ends = vocabulary.eos_ids
  return {"pad_token_id": vocabulary.pad_id, "eos_token_id": ends[0] if len(ends) == 1 else list(ends)}


def _write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
  """The files of a vocabulary that came from no model's folder."""
  if vocabulary.kind == "tokenizers":
    shutil.copyfile(str(vocabulary.path), folder / "tokenizer.json")
  elif vocabulary.kind == "sentencepiece":
    shutil.copyfile(str(vocabulary.path), folder / "spiece.model")
    if vocabulary.closes_inputs:
      tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
      _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", "extra_ids": vocabulary.extra_ids, **tokens},
      )


def _write(file: Path, content: Mapping[str, Any]) -> None:
  file.write_text(json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
