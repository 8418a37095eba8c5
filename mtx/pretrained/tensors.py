"""Opens a checkpoint, whatever its format."""

import re
from pathlib import Path

from mtx.errors import UserError
from mtx.pretrained import llama2c, safetensors_file, t5x
from mtx.pretrained.lazy import Tensors

# Formats that are not read, by how their files end, and why.
REFUSED = {
  r"\.(pt|pth|ckpt|pkl|pickle)|(pytorch|adapter)_model.*\.bin|(optimizer|training_args|scheduler)\.bin": "is a pickle, "
  "and loading a pickle runs the code that it holds",
  r"\.msgpack": "is Flax msgpack, one piece that has to be read into memory as a whole",
  r"\.h5": "is a Keras file, which can hold code beside its arrays",
}
CONVERT = (
  "convert it where you trust it: in transformers, "
  "`AutoModel.from_pretrained(DIR).save_pretrained(NEW, safe_serialization=True)`, with the class of your model"
)
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def open_tensors(path: str | Path) -> Tensors:
  """Opens a checkpoint; nothing but headers is read.

  Args:
    path: a folder with model.safetensors, with model.safetensors.index.json and its shards, or with one other
      .safetensors file; a folder of a T5X run or of one of its steps; a folder with one llama2.c file; or a file of
      any of these.

  Raises:
    UserError: it is not there, is of another format (pickles among them), or damaged; names file and tensor.
  """
  path = Path(path)
  if not path.exists():
    raise UserError(f"{path} is not there.", hint="give the folder of a checkpoint, or one of its files")
  if path.is_dir():
    single = path / "model.safetensors"
    if single.exists():  # transformers' order too
      return safetensors_file.open_file(single)
    if (index := path / safetensors_file.INDEX).exists():
      return safetensors_file.open_index(index)
    others = sorted(path.glob("*.safetensors"))
    if len(others) > 1:
      shown = ", ".join(p.name for p in others[:5])
      raise UserError(f"{path} has {shown} and no {safetensors_file.INDEX}.", hint="give one file, or add the index")
    if others:
      return safetensors_file.open_file(others[0])
    if (step := t5x.find(path)) is not None:
      return t5x.open_t5x(step)
    models = [p for p in sorted(path.glob("*.bin")) if llama2c.is_llama2c(p)]
    if len(models) == 1:
      return llama2c.open_llama2c(models[0])
    if models:
      raise UserError(f"{path} has several models: {', '.join(p.name for p in models[:5])}.", hint="give one file")
    for other in sorted(path.iterdir()):
      refuse(other)
    shown = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise UserError(f"{path} has no checkpoint; it has {shown}.", hint="expected model.safetensors or its index")
  if path.name.endswith(".index.json"):
    return safetensors_file.open_index(path)
  if path.suffix == ".safetensors":
    return safetensors_file.open_file(path)
  refuse(path)
  if t5x.is_t5x(path):
    return t5x.open_t5x(path)
  if path.suffix == ".bin":
    return llama2c.open_llama2c(path)
  raise UserError(f"{path}: no format ends like this.", hint="formats: .safetensors, T5X folders, llama2.c's .bin")


def refuse(path: Path) -> None:
  """Raises UserError if the file is of a format that is not read: by its name, or because it begins like a pickle."""
  if not path.is_file():
    return
  for ending, why in REFUSED.items():
    if re.fullmatch(f".*({ending})", path.name):
      raise UserError(f"{path} {why}.", hint=CONVERT)
  with path.open("rb") as file:
    if path.suffix == ".bin" and file.read(4).startswith(PICKLES):
      raise UserError(f"{path} {next(iter(REFUSED.values()))}.", hint=CONVERT)
