"""Where an output ends: ids that end its row on the device, and texts that are cut off on the host."""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mtx.data.vocabulary import Vocabulary
from mtx.decode.settings import Settings


def for_vocabulary(settings: Settings, vocabulary: Vocabulary) -> Settings:
  """`settings` with the vocabulary's end and padding ids, and the ids of its stop texts.

  A stop text ends a row in two ways: any one token that contains it, and its own encoding as a sequence. A model can
  spell it otherwise, over the border of two tokens; such a row goes on to its limit, and `trimmed` cuts its text.
  """
  sequences = [tuple(vocabulary.encode(text)) for text in settings.stop]
  single: list[tuple[int, ...]] = []
  if settings.stop:
    spelt = ((i, vocabulary.spell(i)) for i in range(vocabulary.size))
    wanted = [text.encode() for text in settings.stop]
    single = [(i,) for i, text in spelt if text and any(stop in text for stop in wanted)]
  found = dict.fromkeys([*filter(None, sequences), *single])
  return replace(settings, eos_ids=vocabulary.eos_ids, pad_id=vocabulary.pad_id, stop_ids=tuple(found))


def ends(window: Int[Array, "*rows n"], settings: Settings) -> Bool[Array, "*rows"]:
  """Whether a row's newest tokens, n = `settings.longest_stop` with the newest last, end it."""
  single = [*settings.eos_ids, *(ids[0] for ids in settings.stop_ids if len(ids) == 1)]
  found = (window[..., -1:] == jnp.array(single, jnp.int32)).any(axis=-1)
  for ids in settings.stop_ids:
    if len(ids) > 1:
      found |= (window[..., -len(ids) :] == jnp.array(ids, jnp.int32)).all(axis=-1)
  return found


def trimmed(text: str, settings: Settings) -> str:
  """`text` up to the first of the stop texts in it."""
  places = [place for stop in settings.stop if (place := text.find(stop)) >= 0]
  return text[: min(places)] if places else text
