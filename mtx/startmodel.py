"""What a run starts from, as gin says: a preset or a pre-trained model; and what it leaves behind."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gin
from ml_collections import ConfigDict

from mtx import ginfile
from mtx.adapters.site import injections
from mtx.check import versions
from mtx.data.convert import ARCHITECTURES, check_architecture
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.models.sizes import model_config
from mtx.pretrained.model import Found, find_model
from mtx.pretrained.native import Card, write_native
from mtx.tokens.folder import find
from mtx.training.parameters import rule_for
from mtx.training.session import Carried, Session
from mtx.training.stage import Stage


def chosen() -> tuple[ConfigDict, Found | None]:
  """The model's config, and the pre-trained model that `model.pretrained` names."""
  folder = ginfile.value("model.pretrained", None)
  if folder is None:
    return model_config(), None
  if ginfile.value("model.preset", None) is not None:
    return model_config(), None  # raises: both
  found = find_model(folder, architecture=ginfile.value("model.architecture", None))
  return model_config(found=found.config), found


def architecture() -> str:
  """What the config's model runs as; "encdec" where it names none."""
  named = any(ginfile.value(f"model.{field}", None) is not None for field in ("preset", "pretrained"))
  if named:
    return chosen()[0].architecture
  written = ginfile.value("model.architecture", None) or ARCHITECTURES[0]
  check_architecture(written)
  return written


def bind_vocabulary() -> None:
  """A pre-trained model's vocabulary becomes that of `mixture`, unless the config names one."""
  folder = ginfile.value("model.pretrained", None)
  if folder is None or not needs_vocabulary():
    return
  found = find_model(folder, architecture=ginfile.value("model.architecture", None))
  if found.vocabulary is None:
    raise UserError(
      f"binding `model.pretrained`: {folder} has no vocabulary.",
      hint="put its tokenizer's files into it, or name the one it was trained with: `mixture.vocabulary`",
    )
  bind_vocabulary_of(found, sentinels=ginfile.value("mixture.extra_ids", None))


def needs_vocabulary() -> bool:
  """Whether the config's source of tasks has no vocabulary of its own and the config names none."""
  source = ginfile.value("train.source", None)
  registered = isinstance(source, str) or getattr(source, "__name__", "") == "registered"  # have theirs
  return not registered and ginfile.value("mixture.vocabulary", None) is None


def bind_vocabulary_of(found: Found, sentinels: int | None = None) -> None:
  """A model's vocabulary becomes that of `mixture`; `sentinels`: as many as the config says, None: as the model has."""
  assert found.vocabulary is not None
  name, own = _setting(found, found.vocabulary)
  gin.bind_parameter("mixture.vocabulary", name)
  gin.bind_parameter("mixture.extra_ids", own if sentinels is None else sentinels)


def _setting(found: Found, vocabulary: Vocabulary) -> tuple[str, int]:
  """How `mixture.vocabulary` and `mixture.extra_ids` are written for a model's vocabulary."""
  if found.files is not None and find(found.files) is not None:
    return str(found.files), 0
  if vocabulary.grouping is not None:
    base = f":{vocabulary.path}" if vocabulary.path else ""
    return f"digits-{vocabulary.grouping.most}-{vocabulary.grouping.align}{base}", vocabulary.extra_ids
  return "bytes" if vocabulary.path is None else str(vocabulary.path), vocabulary.extra_ids


def check_vocabulary(found: Found, data: Vocabulary) -> None:
  """Raises UserError unless the data's ids mean to the model what they mean in the data."""
  rows, known = found.config.vocab_size, found.vocabulary
  if data.size > rows:
    raise UserError(
      f"the data's vocabulary has {data.size} ids, and the embedding of {found.path} {rows} rows.",
      hint="leave `mixture.vocabulary` out: it is then the model's",
    )
  if known is not None and _ids(known) != _ids(data):
    raise UserError(
      f"the data's vocabulary ({data.kind} {data.path or ''}) is not that of {found.path} ({known.kind}).",
      hint="leave `mixture.vocabulary` out: it is then the model's",
    )


def _ids(vocabulary: Vocabulary) -> tuple[Any, ...]:
  """What decides the meaning of ids, wherever the file lies and however the vocabulary was opened."""
  content = b"" if vocabulary.path is None else Path(vocabulary.path).read_bytes()
  return vocabulary.kind, content, vocabulary.size, vocabulary.pad_id, vocabulary.eos_ids, vocabulary.grouping


def keep(session: Session, carried: Carried, stages: Iterable[Any], found: Found | None) -> Path:
  """Writes the model that a run ends with into RUN/model, in place of one that was there."""
  routed = any("task" in axes for axes in carried.model.axes.values())
  base = [path for path in carried.model.shapes if "/adapter/" not in path]
  changed = any(
    rule_for(stage.learning_rates, path) is not None for stage in stages if isinstance(stage, Stage) for path in base
  )
  source: dict[str, Any] = {"made": "mtx train", "run": str(session.run_dir.resolve()), "versions": versions()}
  came: Mapping[str, Any] = {} if found is None else found.source
  if not changed and "path" in came:
    source["path"] = came["path"]  # whose adapters these are
  card = Card(
    config=session.config,
    family=None if found is None else found.family,
    vocabulary=session.mixture("train").vocabulary,
    injections=injections(carried.model.merge(carried.model.shapes)),  # type: ignore[arg-type]  # no array is needed
    tasks=carried.tasks if routed else (),
    hugging_face={} if found is None else found.hugging_face,
    files=None if found is None else found.files,
    source={**source, "from": dict(came), "gin": ginfile.operative()},
  )
  return write_native(session.run_dir / "model", card, carried.params, overwrite=True)
