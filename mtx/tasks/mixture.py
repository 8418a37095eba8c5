"""Collections of tasks to one source: one vocabulary, rates, what is held out, everything registered with SeqIO.

train.source = @mixture
mixture.sources = [@superni, @gsm8k, @bbh]
mixture.rates = @temperature
mixture.holdout = ['category=Question Answering']
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import gin

from mtx.errors import UserError, did_you_mean
from mtx.tasks import vocabularies
from mtx.tasks.encode import encoded, texts_of
from mtx.tasks.holdout import Holdout, Named, hold_out
from mtx.tasks.metrics import METRICS, seqio_metric
from mtx.tasks.rates import Rates, proportional
from mtx.tasks.replay import Replay
from mtx.tasks.source import Source, seqio, tf
from mtx.tasks.task import Collection, Reading, TaskInfo, TextTask

SOURCES = "for example `mixture.sources = [@superni, @gsm8k]`"


@gin.configurable
def mixture(
  sources: Sequence[Collection | Callable[[], Collection]] = (),
  *,
  name: str = "mixture",
  vocabulary: str | None = None,
  vocabulary_size: int = 8192,
  vocabulary_type: str = "unigram",
  extra_ids: int = 0,
  rates: Callable[[Sequence[TaskInfo]], Rates] = proportional,
  holdout: Sequence[str] = (),
  parts: Mapping[str, Mapping[str, float | Mapping[str, Any]]] | None = None,
  part_rates: Mapping[str, Callable[[Sequence[TaskInfo]], Rates]] | None = None,
) -> Source:
  """Registers every task of the sources, and the mixtures `<name>_train` and `<name>_heldout`.

  Calling it again replaces what an earlier call registered.

  Args:
    sources: providers, `[@superni, @gsm8k]`. `train.source = @superni` alone is a mixture of that one source, to
      which the other settings apply.
    name: of the mixture; a single source keeps its own.
    vocabulary: "bytes", "digits-3", a SentencePiece `.model`, a tokenizer.json or a pre-trained model's folder
      (`mtx.tasks.vocabularies.opened`); None trains one of `vocabulary_size` pieces on the sources' training text, or
      takes the one that a single source makes.
    vocabulary_type: of the one that is trained: "unigram", or "word", whose pieces are whole words between white space.
    extra_ids: sentinels after the pieces, for denoising.
    rates: a strategy of `mtx.tasks.rates`, for the training mixture. Held-out tasks are all alike.
    holdout: what to take out of training and judge on, see `mtx.tasks.holdout`.
    parts: further mixtures for single stages (`stage.mixture = 'NAME'`): name -> specification as in `holdout` ->
      factor of those tasks' rates, or a fixed subset of their training examples, each drawn as often as it would be
      without (`mtx.tasks.replay`); the last that matches counts, and 0 where none does. Dual-stage mixed fine-tuning
      (Dong et al. 2023, arXiv 2310.05492) is
        {'special': {'source=gsm8k': 1}, 'general': {'source=self_instruct': 1, 'source=gsm8k': {'replay': '1/256'}}}
    part_rates: part -> the strategy that its factors multiply; `rates` where none is named.

  Raises:
    UserError: no tasks, two tasks of one name, a task both in train and held out, an unknown metric, a specification
      that holds nothing out, a vocabulary that can not be read or trained.
  """
  _check_settings(sources, name, vocabulary_size, extra_ids, rates)
  collections = [each() if callable(each) else each for each in sources]
  for each in collections:
    if not isinstance(each, Collection):
      raise UserError(f"mixture.sources has {each!r}, which is no collection of tasks", hint=SOURCES)
  if len(collections) == 1:
    name = collections[0].name
  train: list[Named] = [(c.name, t) for c in collections for t in c.train]
  held: list[Named] = [(c.name, t) for c in collections for t in c.heldout]
  _check(train, held)
  train, more = hold_out(train, holdout)
  held += more
  tasks = {t.name: t for _, t in train + held}
  pieces = _vocabulary(collections, vocabulary, vocabulary_size, vocabulary_type, extra_ids)
  for task in tasks.values():
    _register(task, pieces)
  strategies = {f"{name}_train": rates}
  replays = {}
  for part in part_rates or {}:
    if part not in (parts or {}):
      raise UserError(f"mixture.part_rates: {part!r} is no part", hint=did_you_mean(part, parts or {}))
  for part, factors in (parts or {}).items():
    if part in ("train", "heldout"):
      raise UserError(f"mixture.parts: {part!r} is taken", hint="choose another name")
    found = _factors(part, factors, train)
    replays[f"{name}_{part}"] = {task: factor for task, factor in found.items() if isinstance(factor, Replay)}
    strategies[f"{name}_{part}"] = functools.partial(scaled, rates=(part_rates or {}).get(part, rates), factors=found)
  infos = [TaskInfo(t.name, t.category, source, t.splits.get("train") or 0) for source, t in train]
  counted = all(t.splits.get("train") is not None for _, t in train)
  for mixture_name, strategy in strategies.items():
    numbers = strategy(infos) if counted else [1.0] * len(infos)  # else the cache builder counts first
    _register_mixture(mixture_name, [(i.name, rate) for i, rate in zip(infos, numbers, strict=True)])
  _register_mixture(f"{name}_heldout", [(t.name, 1.0) for _, t in held])
  return Source(
    name=name,
    vocabulary=pieces,
    train=f"{name}_train",
    heldout=f"{name}_heldout",
    categories={t.name: t.category for t in tasks.values()},
    metrics={t.name: t.metrics for t in tasks.values()},
    sources={t.name: source for source, t in train + held},
    parts={part: f"{name}_{part}" for part in parts or {}},
    rates=strategies,
    replays=replays,
    texts=tasks,
  )


def _check_settings(sources: Any, name: Any, vocabulary_size: Any, extra_ids: Any, rates: Any) -> None:
  """What gin binds may be of any type."""
  if not isinstance(sources, (list, tuple)):
    raise UserError(f"mixture.sources is {getattr(sources, '__name__', sources)!r}, not a list", hint=SOURCES)
  if not sources:
    raise UserError("mixture.sources is empty", hint=SOURCES)
  if not re.fullmatch(r"[\w.-]+", str(name)):
    raise UserError(f"mixture.name is {name!r}", hint="use letters, digits, _, . and -: it names a file")
  for binding, value, least in (("vocabulary_size", vocabulary_size, 1), ("extra_ids", extra_ids, 0)):
    if not isinstance(value, int) or value < least:
      raise UserError(f"mixture.{binding} is {value!r}", hint=f"it is a whole number, {least} or more")
  if not callable(rates):
    raise UserError(f"mixture.rates is {rates!r}, not a strategy", hint="for example `mixture.rates = @temperature`")


def _check(train: Sequence[Named], held: Sequence[Named]) -> None:
  if not train and not held:
    raise UserError("the sources of the mixture have no tasks")
  both = {t.name for _, t in train} & {t.name for _, t in held}
  if both:
    raise UserError(
      f"task {min(both)!r} is listed in train and held out at once"
      + (f" (and {len(both) - 1} others are)" if len(both) > 1 else ""),
      hint="a task that is judged on must not be trained on: take it off one of the two lists",
    )
  for roles in (train, held):
    name, count = Counter(t.name for _, t in roles).most_common(1)[0] if roles else ("", 0)
    if count > 1:
      places = ", ".join(source for source, t in roles if t.name == name)
      raise UserError(f"{count} tasks are called {name!r} (sources: {places})", hint="every task needs its own name")
  for source, task in [*train, *held]:
    if bad := re.sub(r"[\w.:]", "", task.name):
      raise UserError(f"source {source}: task {task.name!r} has {bad[0]!r} in its name", hint="use letters, digits, _")
    for metric in task.metrics:
      if metric not in METRICS:
        raise UserError(f"task {task.name!r}: metric {metric!r} is not known", hint=did_you_mean(metric, METRICS))


def _factors(
  part: str, factors: Mapping[str, float | Mapping[str, Any]], train: Sequence[Named]
) -> dict[str, float | Replay]:
  """Training task -> factor of its rate, or which of its examples are drawn."""
  binding = f"mixture.parts[{part!r}]"
  found: dict[str, float | Replay] = {t.name: 0.0 for _, t in train}
  for text, written in factors.items():
    spec = Holdout.of(text, binding)
    matching = [t.name for source, t in train if spec.kind != "instances" and spec.matches(source, t)]
    factor = Replay.of(written, f"{binding}: {text!r}") if isinstance(written, Mapping) else float(written)
    if not matching or (isinstance(factor, float) and factor < 0):
      why = "matches no training task" if not matching else f"has the factor {factor}"
      raise UserError(f"{binding}: {text!r} {why}", hint="factors are 0 or more, of tasks that are there")
    found |= dict.fromkeys(matching, factor)
  return found


def scaled(
  tasks: Sequence[TaskInfo], rates: Callable[[Sequence[TaskInfo]], Rates], factors: Mapping[str, float | Replay]
) -> Rates:
  """Rates of a strategy times a factor for each task; a replay's is its fraction, until its examples are counted."""
  found = [factors.get(t.name, 0.0) for t in tasks]
  numbers = [factor.fraction if isinstance(factor, Replay) else factor for factor in found]
  return [rate * number for number, rate in zip(numbers, rates(tasks), strict=True)]


def _register_mixture(name: str, members: Sequence[tuple[str, float]]) -> None:
  seqio.MixtureRegistry.remove(name)
  if members:
    seqio.MixtureRegistry.add(name, members)


def _vocabulary(
  collections: Sequence[Collection], given: str | None, size: int, model_type: str, extra_ids: int
) -> seqio.Vocabulary:
  if given:
    return vocabularies.opened(given, extra_ids)
  makes = [c.vocabulary for c in collections if c.vocabulary]
  if len(collections) == 1 and makes:
    path = makes[0]()
  else:
    share = 20_000 // len(collections)
    texts = (c.texts() if c.texts else texts_of(c.train or c.heldout, share) for c in collections)
    path = vocabularies.trained(chain.from_iterable(texts), size, model_type)
  return vocabularies.sentencepiece(path, extra_ids)


def _register(task: TextTask, vocabulary: seqio.Vocabulary) -> None:
  """Adds a task to SeqIO's registry, in place of one of that name.

  Its source gives token ids, tokenised as the cache builder does it: a row may be text, ids or a conversation.
  """
  feature = seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32, required=False)
  seqio.TaskRegistry.remove(task.name)
  seqio.TaskRegistry.add(
    task.name,
    source=seqio.FunctionDataSource(
      functools.partial(_dataset, task=task, vocabulary=vocabulary),
      splits=tuple(task.splits),
      num_input_examples={split: count for split, count in task.splits.items() if count is not None} or None,
    ),
    preprocessors=[],
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=_references_or_text,
    # SeqIO's own evaluation generates; it ranks no options.
    metric_fns=[seqio_metric(metric) for metric in task.metrics if not METRICS[metric].chooses],
  )


def _dataset(
  split: str, shuffle_files: bool = False, seed: int | None = None, *, task: TextTask, vocabulary: seqio.Vocabulary
) -> tf.data.Dataset:
  """Examples of a split as SeqIO has them: inputs, targets, inputs_pretokenized, id, references (JSON)."""
  del shuffle_files, seed  # the order is the cache's order; Grain shuffles
  reading = Reading(vocabulary.encode, vocabulary.vocab_size, vocabularies.sentinels(vocabulary))

  def examples() -> Iterator[Mapping[str, Any]]:
    for example in encoded(task, split, reading, vocabulary.eos_id, writing=vocabularies.writing(vocabulary)):
      yield {
        "inputs": example["inputs"],
        "targets": example["targets"],
        "inputs_pretokenized": example["text"],
        "id": example["id"],
        "references": json.dumps(example["references"], ensure_ascii=False),
      }

  tokens, text = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.string)
  signature = {"inputs": tokens, "targets": tokens, "inputs_pretokenized": text, "id": text, "references": text}
  return tf.data.Dataset.from_generator(examples, output_signature=signature)


def _references_or_text(output: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False):
  """SeqIO's postprocessing: a target is all its references, a prediction is its text."""
  return json.loads(example["references"]) if is_target and example else output
