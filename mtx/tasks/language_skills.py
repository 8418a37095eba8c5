"""What the tasks of the language family ask for: 8 categories of 12 skills, computed from meanings. No TensorFlow.

A skill draws a text, shows it in a language, and writes the answer that its meaning has. Its instructions are
English; `Language.instruction` says them in other languages.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from mtx.tasks.language_grammar import (
  COLOURS,
  COUNTS,
  KINDS,
  LONGEST,
  NOUNS,
  OPPOSITES,
  VALENCE,
  VERBS,
  Clause,
  Language,
  Phrase,
  Text,
  Tokens,
  passage,
)

TRIES = 300  # texts that are drawn for one that has the label, before the draw counts as failed


@dataclass(frozen=True)
class Setting:
  """What one example is made from.

  Attributes:
    random: all its chance.
    say: the language of the text; ask: of the instruction and the labels; other: what is translated to and from.
    seed: of the world.
    test: whether the text's clauses are those kept for split `test`.
  """

  random: Random
  say: Language
  ask: Language
  other: Language
  seed: int
  test: bool

  def text(self, fewest: int, most: int) -> Text:
    """A passage of so many sentences."""
    while (found := passage(self.random, self.random.randint(fewest, most), self.seed, self.test)) is None:
      pass
    return found


class Made(NamedTuple):
  """An input without its instruction, the answer, and what there is to choose from."""

  inputs: str
  targets: str
  options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skill:
  """One task of the family, in no language yet.

  Attributes:
    instructions: paraphrases, of words that every language has.
    make: draws an example; None where the draw does not suit the skill.
    writes: whose words the answer is made of: "say", "ask" or "other" (see `Setting`).
  """

  name: str
  category: str
  instructions: tuple[str, ...]
  make: Callable[[Setting], Made | None]
  writes: str = "say"


# Lemma or number in each place of a clause, and what instructions call the place.
SLOTS: dict[str, tuple[Callable[[Clause], str], str]] = {
  "actor": (lambda c: c.actor.noun, "actor"),
  "verb": (lambda c: c.verb, "verb"),
  "target": (lambda c: c.target.noun, "target"),
  "actor_number": (lambda c: str(c.actor.count), "number of the actor"),
  "target_number": (lambda c: str(c.target.count), "number of the target"),
  "actor_quality": (lambda c: c.actor.quality, "quality of the actor"),
  "target_quality": (lambda c: c.target.quality, "quality of the target"),
}


def answer(setting: Setting, *, asked: str, given: str) -> Made:
  """The text, then `?` and the word by which one of its sentences is found.

  There is every word of the text to choose from that is of the kind of the answer (a noun, a verb, a number, a
  quality), but for the given one: choosing takes the right sentence and the right place in it.
  """
  text, say = setting.text(2, 3), setting.say
  clause = setting.random.choice(text)
  question = SLOTS[given][0](clause)
  words = dict.fromkeys(read(c) for c in text for slot, (read, _) in SLOTS.items() if _sort(slot) == _sort(asked))
  options = [say.write([say.word(word)]) for word in words if word != question]
  return Made(
    say.write([*say.text(text), "?", say.word(question)]),
    say.write([say.word(SLOTS[asked][0](clause))]),
    tuple(options),
  )


def label(setting: Setting, *, what: str) -> Made | None:
  """Every label is equally likely: it is drawn first, then texts until one has it."""
  options, judge = LABELS[what]
  wanted = setting.random.choice(options)
  say, labels = setting.say, tuple(setting.ask.write([setting.ask.word(option)]) for option in options)
  for _ in range(TRIES):
    [clause] = setting.text(1, 1)
    if judge(clause) == wanted:
      return Made(say.write([*say.clause(clause), "."]), labels[options.index(wanted)], labels)
  return None


def spot(setting: Setting, *, what: str) -> Made:
  """Whether a sentence has a mistake, or a text a word: the answer is drawn, then the sentence or word made for it."""
  random, say, ask = setting.random, setting.say, setting.ask
  options = SPOTS[what]
  wanted = random.choice(options)
  if what == "contains":
    text = setting.text(2, 3)
    there = [phrase.noun for clause in text for phrase in (clause.actor, clause.target)]
    noun = random.choice(there if wanted == "yes" else [noun for noun in NOUNS if noun not in there])
    tokens = [*say.text(text), "?", say.word(noun)]
  else:
    [clause] = setting.text(1, 1)
    tokens = say.clause(clause)
    if wanted == "wrong" and what == "agreement":
      a, b = clause.actor, clause.target
      form, lemma, count = random.choice((
        (say.noun, a.noun, a.count), (say.noun, b.noun, b.count), (say.verb, clause.verb, a.count)
      ))  # fmt: skip
      tokens[tokens.index(form(lemma, count))] = form(lemma, 2 if count == 1 else 1)
    elif wanted == "wrong":
      others = say.order.replace("V", "")
      moved = [others[:i] + "V" + others[i:] for i in range(3)]
      tokens = say.clause(clause, random.choice([order for order in moved if order != say.order]))
    tokens = [*tokens, "."]
  labels = tuple(ask.write([ask.word(option)]) for option in options)
  return Made(say.write(tokens), labels[options.index(wanted)], labels)


def extract(setting: Setting, *, what: str) -> Made | None:
  """A list, separated by commas, in the order of the text."""
  text, say = setting.text(2, 3), setting.say
  found = EXTRACTS[what](text, say)
  return Made(say.write(say.text(text)), say.write(listed(found))) if found else None


def count(setting: Setting, *, what: str) -> Made:
  """A number, to choose from all that there can be. How many of something there are is drawn with the text, so small
  numbers are likelier."""
  text, say = setting.text(1, LONGEST), setting.say
  most = sum(COUNTS[-LONGEST:]) if what.startswith("sum") else COUNTS[-1]
  options = tuple(say.write([str(number)]) for number in range(most + 1))
  return Made(say.write(say.text(text)), say.write([str(COUNTED[what](text))]), options)


def order(setting: Setting, *, what: str) -> Made:
  """Words or sentences in another order."""
  single = what.startswith("words")
  text, say = setting.text(1, 1) if single else setting.text(2, 4), setting.say
  return Made(say.write(say.text(text)), say.write(ORDERED[what](text, say)))


def rewrite(setting: Setting, *, what: str) -> Made | None:
  """The text with something changed in every sentence; what it is changed to may follow after `?`."""
  say, random = setting.say, setting.random
  given = what.endswith("_to_given")
  text = setting.text(1, 1 if given else 2)
  question: Tokens = []
  if given:
    present = {text[0].actor.noun, text[0].target.noun, text[0].verb}
    new = random.choice([lemma for lemma in (VERBS if what.startswith("verb") else NOUNS) if lemma not in present])
    question = ["?", say.word(new)]
    changed: list[Clause | None] = [GIVEN[what](text[0], new)]
  else:
    changed = [REWRITTEN[what](clause) for clause in text]
  clauses = [clause for clause in changed if clause is not None]
  if len(clauses) < len(text):
    return None
  return Made(say.write([*say.text(text), *question]), say.write(say.text(clauses)))


def rephrase(setting: Setting, *, what: str) -> Made:
  """The text without some of its words."""
  text, say = setting.text(1, 2), setting.say
  left_out = {
    word
    for clause in text
    for phrase in ((clause.actor,) if what == "drop_actor_quality" else (clause.actor, clause.target))
    for word in [say.quality(phrase.quality, phrase.count)]
  }
  return Made(say.write(say.text(text)), say.write([token for token in say.text(text) if token not in left_out]))


def translate(setting: Setting, *, what: str, to_other: bool) -> Made:
  """From the text's language into the other one, or back."""
  text = setting.text(*((1, 1) if what in ("sentence", "words") else (2, 3)))
  source, target = (setting.say, setting.other) if to_other else (setting.other, setting.say)
  return Made(source.write(source.text(text)), target.write(TRANSLATED[what](text, source, target)))


def compose(setting: Setting, *, what: str) -> Made:
  """A sentence from its parts, or the parts of a sentence."""
  [clause], say = setting.text(1, 1), setting.say
  sentence = [*say.clause(clause), "."]
  groups = [
    [("actor", clause.actor.noun), *_features(clause.actor)],
    [("verb", clause.verb)],
    [("target", clause.target.noun), *_features(clause.target)],
  ]
  if what == "sentence_from_record":
    shown, wanted = _record(groups, say), sentence
  elif what == "record_from_sentence":
    shown, wanted = sentence, _record(groups, say)
  elif what == "sentence_from_shuffled_record":
    setting.random.shuffle(groups)
    shown, wanted = _record(groups, say), sentence
  elif what == "sentence_from_phrases":
    shown = listed([say.phrase(clause.actor), [say.word(clause.verb)], say.phrase(clause.target)])
    wanted = sentence
  else:  # phrases_from_parts
    parts = [[p.noun, p.quality, str(p.count)] for p in (clause.actor, clause.target)]
    for each in parts:
      setting.random.shuffle(each)
    shown = listed([[token for i, part in enumerate(each) for token in ([";"] if i else []) + [say.word(part)]]
                    for each in parts])  # fmt: skip
    wanted = listed([say.phrase(clause.actor), say.phrase(clause.target)])
  return Made(say.write(shown), say.write(wanted))


def restore(setting: Setting, *, what: str) -> Made:
  """A sentence whose gap `_` is filled with a word that is given as in a dictionary."""
  [clause], say = setting.text(1, 1), setting.say
  lemma, form = {
    "restore_actor": (clause.actor.noun, say.noun(clause.actor.noun, clause.actor.count)),
    "restore_target": (clause.target.noun, say.noun(clause.target.noun, clause.target.count)),
    "restore_verb": (clause.verb, say.verb(clause.verb, clause.actor.count)),
    "restore_quality": (clause.target.quality, say.quality(clause.target.quality, clause.target.count)),
  }[what]
  sentence = [*say.clause(clause), "."]
  return Made(
    say.write(["_" if token == form else token for token in sentence] + ["?", say.word(lemma)]), say.write(sentence)
  )


def cross(setting: Setting, *, what: str) -> Made:
  """The first of two sentences, with one part taken from the last."""
  text, say = setting.text(2, 2), setting.say
  first, last = text
  mixed = {
    "cross_actor": replace(first, actor=last.actor),
    "cross_verb": replace(first, verb=last.verb),
    "cross_target": replace(first, target=last.target),
  }[what]
  return Made(say.write(say.text(text)), say.write(say.text([mixed])))


def listed(items: Sequence[Tokens]) -> Tokens:
  """Items with commas between them."""
  return [token for i, item in enumerate(items) for token in ([",", *item] if i else item)]


def _features(phrase: Phrase) -> list[tuple[str, str]]:
  return [("number", str(phrase.count)), ("quality", phrase.quality)]


def _record(groups: Sequence[Sequence[tuple[str, str]]], say: Language) -> Tokens:
  pairs = [pair for group in groups for pair in group]
  return [t for i, pair in enumerate(pairs) for t in ([";"] if i else []) + [say.word(lemma) for lemma in pair]]


def _sort(slot: str) -> str:
  """What words stand in a place of a clause: noun, verb, number or quality."""
  return "noun" if slot in ("actor", "target") else slot.split("_")[-1]


def _kind(noun: str) -> str:
  return next(kind for kind, nouns in KINDS.items() if noun in nouns)


def _phrases(text: Text) -> list[Phrase]:
  return [phrase for clause in text for phrase in (clause.actor, clause.target)]


def _surface_order(text: Text, say: Language) -> list[Phrase]:
  """Actor and target of each sentence, in the order in which the language writes them."""
  actor_first = say.order.index("S") < say.order.index("O")
  return [p for c in text for p in ((c.actor, c.target) if actor_first else (c.target, c.actor))]


def _speech(clause: Clause, say: Language) -> list[str]:
  """Part of speech of every word of a sentence."""
  phrase = ["number", *(("quality", "noun") if say.quality_first else ("noun", "quality"))]
  return [tag for part in say.order for tag in ({"V": ["verb"]}.get(part, phrase))]


LABELS: dict[str, tuple[tuple[str, ...], Callable[[Clause], str | None]]] = {
  "actor_kind": (tuple(KINDS), lambda c: _kind(c.actor.noun)),
  "target_kind": (tuple(KINDS), lambda c: _kind(c.target.noun)),
  "verb_value": (("good", "bad"), lambda c: VALENCE.get(c.verb)),
  "quality_value": (("good", "bad"), lambda c: VALENCE.get(c.actor.quality)),
  "same_kind": (("yes", "no"), lambda c: "yes" if _kind(c.actor.noun) == _kind(c.target.noun) else "no"),
  "more": (("actor", "target"), lambda c: "actor" if c.actor.count > c.target.count else "target"),
  "parity": (("odd", "even"), lambda c: "odd" if c.actor.count % 2 else "even"),
  "actor_colour": (("yes", "no"), lambda c: "yes" if c.actor.quality in COLOURS else "no"),
  "actor_many": (("one", "many"), lambda c: "one" if c.actor.count == 1 else "many"),
}
SPOTS = {"agreement": ("right", "wrong"), "word_order": ("right", "wrong"), "contains": ("yes", "no")}

EXTRACTS: dict[str, Callable[[Text, Language], list[Tokens]]] = {
  "actors": lambda t, say: [[say.word(c.actor.noun)] for c in t],
  "targets": lambda t, say: [[say.word(c.target.noun)] for c in t],
  "verbs": lambda t, say: [[say.word(c.verb)] for c in t],
  "qualities": lambda t, say: [[say.word(p.quality)] for p in _surface_order(t, say)],
  "numbers": lambda t, say: [[str(p.count)] for p in _surface_order(t, say)],
  "animals": lambda t, say: [[say.word(p.noun)] for p in _surface_order(t, say) if _kind(p.noun) == "animal"],
  "persons": lambda t, say: [[say.word(p.noun)] for p in _surface_order(t, say) if _kind(p.noun) == "person"],
  "colours": lambda t, say: [[say.word(p.quality)] for p in _surface_order(t, say) if p.quality in COLOURS],
  "plurals": lambda t, say: [[say.noun(p.noun, p.count)] for p in _surface_order(t, say) if p.count > 1],
  "actor_phrases": lambda t, say: [say.phrase(c.actor) for c in t],
  "target_phrases": lambda t, say: [say.phrase(c.target) for c in t],
  "speech": lambda t, say: [[say.word(tag)] for c in t for tag in _speech(c, say)],
}

COUNTED: dict[str, Callable[[Text], int]] = {
  "sentences": len,
  "plurals": lambda t: sum(p.count > 1 for p in _phrases(t)),
  "animals": lambda t: sum(_kind(p.noun) == "animal" for p in _phrases(t)),
  "persons": lambda t: sum(_kind(p.noun) == "person" for p in _phrases(t)),
  "plants": lambda t: sum(_kind(p.noun) == "plant" for p in _phrases(t)),
  "tools": lambda t: sum(_kind(p.noun) == "tool" for p in _phrases(t)),
  "colours": lambda t: sum(p.quality in COLOURS for p in _phrases(t)),
  "sum_actors": lambda t: sum(c.actor.count for c in t),
  "sum_targets": lambda t: sum(c.target.count for c in t),
  "largest": lambda t: max(p.count for p in _phrases(t)),
  "smallest": lambda t: min(p.count for p in _phrases(t)),
  "difference": lambda t: max(p.count for p in _phrases(t)) - min(p.count for p in _phrases(t)),
}

ORDERED: dict[str, Callable[[Text, Language], Tokens]] = {
  "numbers_up": lambda t, say: listed([[str(n)] for n in sorted(p.count for p in _phrases(t))]),
  "numbers_down": lambda t, say: listed([[str(n)] for n in sorted((p.count for p in _phrases(t)), reverse=True)]),
  "sentences_reversed": lambda t, say: say.text(t[::-1]),
  "sentences_rotated": lambda t, say: say.text(t[1:] + t[:1]),
  "sentences_swapped": lambda t, say: say.text((t[-1], *t[1:-1], t[0])),
  "sentences_by_actor_number": lambda t, say: say.text(sorted(t, key=lambda c: c.actor.count)),
  "sentences_by_target_number": lambda t, say: say.text(sorted(t, key=lambda c: c.target.count)),
  "actors_by_number": lambda t, say: listed([[say.word(c.actor.noun)] for c in sorted(t, key=lambda c: c.actor.count)]),
  "targets_by_number": lambda t, say: listed(
    [[say.word(c.target.noun)] for c in sorted(t, key=lambda c: c.target.count)]
  ),
  "nouns_by_number": lambda t, say: listed([[say.word(p.noun)] for p in sorted(_phrases(t), key=lambda p: p.count)]),
  "words_reversed": lambda t, say: say.text(t)[-2::-1],
  "words_rotated": lambda t, say: say.text(t)[-2:-1] + say.text(t)[:-2],
}


def _opposite(clause: Clause, verb: bool) -> Clause | None:
  """With the opposite verb, or the opposite quality of the actor; None where there is none."""
  if verb:
    return replace(clause, verb=OPPOSITES[clause.verb]) if clause.verb in OPPOSITES else None
  actor = clause.actor
  return replace(clause, actor=replace(actor, quality=OPPOSITES[actor.quality])) if actor.quality in OPPOSITES else None


REWRITTEN: dict[str, Callable[[Clause], Clause | None]] = {
  "swap_actor_and_target": lambda c: replace(c, actor=c.target, target=c.actor),
  "swap_numbers": lambda c: Clause(
    replace(c.actor, count=c.target.count), c.verb, replace(c.target, count=c.actor.count)
  ),
  "swap_qualities": lambda c: Clause(
    replace(c.actor, quality=c.target.quality), c.verb, replace(c.target, quality=c.actor.quality)
  ),
  "actor_to_one": lambda c: replace(c, actor=replace(c.actor, count=1)),
  "all_to_one": lambda c: replace(c, actor=replace(c.actor, count=1), target=replace(c.target, count=1)),
  "opposite_verb": lambda c: _opposite(c, True),
  "opposite_quality": lambda c: _opposite(c, False),
}
GIVEN: dict[str, Callable[[Clause, str], Clause]] = {
  "verb_to_given": lambda c, new: replace(c, verb=new),
  "actor_to_given": lambda c, new: replace(c, actor=replace(c.actor, noun=new)),
  "target_to_given": lambda c, new: replace(c, target=replace(c.target, noun=new)),
}

TRANSLATED: dict[str, Callable[[Text, Language, Language], Tokens]] = {
  "sentence": lambda t, source, target: target.text(t),
  "text": lambda t, source, target: target.text(t),
  "actors": lambda t, source, target: listed(EXTRACTS["actors"](t, target)),
  "targets": lambda t, source, target: listed(EXTRACTS["targets"](t, target)),
  "verbs": lambda t, source, target: listed(EXTRACTS["verbs"](t, target)),
  "words": lambda t, source, target: _gloss(t[0], source, target),
}


def _gloss(clause: Clause, source: Language, target: Language) -> Tokens:
  """Every word as the target's dictionary has it, in the order of the source."""

  def phrase(p: Phrase) -> Tokens:
    lemmas = [p.quality, p.noun] if source.quality_first else [p.noun, p.quality]
    return [str(p.count), *map(target.word, lemmas)]

  parts = {"S": phrase(clause.actor), "V": [target.word(clause.verb)], "O": phrase(clause.target)}
  return [token for part in source.order for token in parts[part]]


# A category's skills, one a line: name, then two instructions. Their first word is the verb.
ANSWERS = (
  ("actor", "target"), ("target", "actor"), ("actor", "verb"), ("verb", "actor"), ("verb", "target"),
  ("target", "verb"), ("actor_number", "actor"), ("target_number", "target"), ("actor_quality", "actor"),
  ("target_quality", "target"), ("actor", "actor_number"), ("target", "target_quality"),
)  # fmt: skip
JUDGEMENTS = """
agreement: tell how the agreement in number is | say whether the numbers of the words agree
word_order: tell how the order of the words is | say whether the words are in their place
contains: tell whether the given noun is in the text | say whether the text has this noun
actor_kind: tell the kind of the actor | say what kind of noun the actor is
target_kind: tell the kind of the target | say what kind of noun the target is
verb_value: tell the value of the verb | say whether the actor turns out good or bad
quality_value: tell the value of the quality of the actor | say whether the actor is one of the good or bad
same_kind: tell whether actor and target are of one kind | say whether the kind of both nouns is the same
more: tell which of the two has the larger number | say who is there more , compare both numbers
parity: tell the parity of the number of the actor | say what the number of actors divided by two leaves
actor_colour: tell whether the quality of the actor is a colour | say whether the actor has a colour
actor_many: tell how many actors there are | say whether the actor is alone
"""
EXTRACTIONS = """
actors: list every actor | name all who do something
targets: list every target | name all to whom something is done
verbs: list every verb | name all that is done
qualities: list every quality | name all words that tell how a noun is
numbers: list every number | name all numbers of the text
animals: list every animal | name all nouns that are animals
persons: list every person | name all nouns that are persons
colours: list every colour | name all words for colours
plurals: list every noun that is more than one | name all nouns in plural as they are written
actor_phrases: list every actor with number and quality | copy the whole phrase of all actors
target_phrases: list every target with number and quality | copy the whole phrase of all targets
speech: tag every word with its part of speech | write for each word what part it is
"""
COUNTINGS = """
sentences: count the sentences | tell how many sentences the text has
plurals: count the nouns in plural | tell how many nouns are more than one
animals: count the nouns for animals | tell how many nouns are animals
persons: count the nouns for persons | tell how many nouns are persons
plants: count the nouns for plants | tell how many nouns are plants
tools: count the nouns for tools | tell how many nouns are tools
colours: count the colours | tell how many words are a colour
sum_actors: sum the numbers of the actors | add the number of each actor
sum_targets: sum the numbers of the targets | add the number of each target
largest: find the largest number | tell which number is above all others
smallest: find the smallest number | tell which number is below all others
difference: find the difference of the largest and the smallest number | take the smallest number from the largest
"""
ORDERINGS = """
numbers_up: sort the numbers | put the small numbers before the large ones
numbers_down: sort the numbers descending | put the large numbers before the small ones
sentences_reversed: reverse the order of the sentences | copy the sentences from last to first
sentences_rotated: move the first sentence to the end | put the first sentence after all others
sentences_swapped: exchange the first and the last sentence | swap the sentences at both ends
sentences_by_actor_number: sort the sentences by the number of the actor | put sentences with few actors first
sentences_by_target_number: sort the sentences by the number of the target | put sentences with few targets first
actors_by_number: sort the actors by their number | list actors , put those of which there are few first
targets_by_number: sort the targets by their number | list targets , put those of which there are few first
nouns_by_number: sort all nouns by their number | list all nouns , put those of which there are few first
words_reversed: reverse the order of the words | copy the words from last to first
words_rotated: move the last word to the start | put the last word before all others
"""
REWRITINGS = """
swap_actor_and_target: swap actor and target | make the target act on the actor
swap_numbers: swap the two numbers of each sentence | give actor and target the number of the other
swap_qualities: swap the two qualities of each sentence | give actor and target the quality of the other
actor_to_one: turn every actor into one | change the number of actors to one
all_to_one: turn every noun into one | change all numbers to one
opposite_verb: turn every verb into its opposite | change what is done to the opposite
opposite_quality: turn the quality of the actor into its opposite | change how the actor is to the opposite
drop_qualities: drop all qualities | leave out how the nouns are
drop_actor_quality: drop the quality of the actor | leave out how the actor is
verb_to_given: put the given word for the verb | replace the verb by the given one
actor_to_given: put the given word for the actor | replace the actor by the given one
target_to_given: put the given word for the target | replace the target by the given one
"""
TRANSLATIONS = """
sentence: translate the sentence | say the sentence
text: translate the text | say all sentences
actors: translate the actors | list the actors
targets: translate the targets | list the targets
verbs: translate the verbs | list the verbs
words: translate word by word | replace each word by its dictionary form
"""
COMPOSITIONS = """
sentence_from_record: write the sentence of the record | turn the record into a sentence
sentence_from_shuffled_record: write the sentence of the record without order | turn the mixed record into a sentence
record_from_sentence: write the record of the sentence | turn the sentence into a record
sentence_from_phrases: write a sentence with these phrases | turn the phrases into a sentence
phrases_from_parts: write both phrases from their parts | turn the parts into two phrases
restore_actor: fill the gap with the given actor | write the sentence with the actor in its place
restore_target: fill the gap with the given target | write the sentence with the target in its place
restore_verb: fill the gap with the given verb | write the sentence with the verb in its place
restore_quality: fill the gap with the given quality | write the sentence with the quality in its place
cross_actor: copy the first sentence with the actor of the last | replace the first actor by the last one
cross_verb: copy the first sentence with the verb of the last | replace the first verb by the last one
cross_target: copy the first sentence with the target of the last | replace the first target by the last one
"""


def _skills() -> Iterator[Skill]:
  def skill(name: str, category: str, first: str, second: str, make: Callable, writes: str = "say", **what) -> Skill:
    paraphrases = (first, second, f"read the text , {first}", f"{second} , use the text")
    return Skill(name, category, paraphrases, functools.partial(make, **what), writes)

  for asked, given in ANSWERS:
    a, b = SLOTS[asked][1], SLOTS[given][1]
    yield skill(
      f"answer_{asked}_of_{given}",
      "answering",
      f"name the {a} of the sentence with the given {b}",
      f"find the {b} in the text , tell the {a} there",
      answer,
      asked=asked,
      given=given,
    )
  for what, *instructions in _lines(JUDGEMENTS):
    choice = " or ".join(SPOTS[what] if what in SPOTS else LABELS[what][0])
    first, second = (f"{instruction} , answer {choice}" for instruction in instructions)
    yield skill(f"label_{what}", "labelling", first, second, spot if what in SPOTS else label, "ask", what=what)
  for category, prefix, table, make in (
    ("extraction", "list", EXTRACTIONS, extract),
    ("counting", "count", COUNTINGS, count),
    ("ordering", "order", ORDERINGS, order),
    ("rewriting", "rewrite", REWRITINGS, rewrite),
    ("composing", "compose", COMPOSITIONS, compose),
  ):
    for what, first, second in _lines(table):
      special = {"drop": rephrase, "restore": restore, "cross": cross}
      yield skill(f"{prefix}_{what}", category, first, second, special.get(what.split("_")[0], make), what=what)
  for what, first, second in _lines(TRANSLATIONS):
    yield skill(
      f"translate_{what}_to_english",
      "translation",
      f"{first} into english",
      f"{second} in english",
      translate,
      "other",
      what=what,
      to_other=True,
    )
    yield skill(
      f"translate_{what}_from_english",
      "translation",
      f"{first} from english",
      f"{second} in the language that is not english",
      translate,
      what=what,
      to_other=False,
    )


def _lines(table: str) -> list[list[str]]:
  """Lines `name: first | second` as [name, first, second]."""
  return [re.split(": | \\| ", line) for line in table.strip().splitlines()]


SKILLS: dict[str, Skill] = {skill.name: skill for skill in _skills()}
CATEGORIES = tuple(dict.fromkeys(skill.category for skill in SKILLS.values()))
