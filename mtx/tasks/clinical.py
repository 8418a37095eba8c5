"""Twelve tasks on the same invented clinical notes, which only an instruction tells apart. No TensorFlow.

After In-BoXBART (Parmar et al. 2022, arXiv 2204.07600): named entities of several types, parts of speech, yes/no and
factoid questions, classification and de-identification. All tasks have the same notes as inputs, in the same splits, so
without an instruction no model can know what is asked. An instruction has the paper's three fields: a definition, a
prompt and solved examples. What it is worth beyond telling the tasks apart is what `instruction = 'token'`, one word a
task, does not reach; `'constant'` is a text of that length which says nothing.

Notes are made of a patient and two findings. Who treats, drives or blocks what is random: nothing about the world is to
be learned but the kind of every name and what verbs mean.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import gin
import numpy as np

from mtx.errors import UserError, did_you_mean
from mtx.tasks import family
from mtx.tasks.denoise import SpanCorruption, corrupted
from mtx.tasks.task import Collection, Row
from mtx.tasks.vocabularies import trained

STEMS = tuple("bado celi dufa fegi garo hilu jome kapi lusa meno nivo pura rilo sebu tamo vidu".split())
KINDS = {  # of names
  kind: tuple(stem + ending for stem in STEMS)
  for kind, ending in (("drug", "mab"), ("gene", "ase"), ("disease", "itis"), ("person", "son"), ("city", "ville"))
}
MEDICAL = ("drug", "gene", "disease")
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
# Verb -> kinds of its subject and object, and whether it does harm.
FINDINGS = {
  "treats": ("drug", "disease", False),
  "eases": ("drug", "disease", False),
  "causes": ("drug", "disease", True),
  "worsens": ("drug", "disease", True),
  "repairs": ("drug", "gene", False),
  "blocks": ("drug", "gene", True),
  "prevents": ("gene", "disease", False),
  "drives": ("gene", "disease", True),
}
STATES = {"takes": "drug", "has": "disease", "carries": "gene"}  # verb of a patient -> kind of its object
ADJECTIVES = {"disease": ("severe", "mild", "chronic", "acute"), "gene": ("mutant", "silent", "active", "rare")}
INSTRUCTIONS = ("full", "off", "constant", "token")
SAYS_NOTHING = "this sentence is here for its length alone and says nothing of what is to be done"
MASK = "_"
NOISE = SpanCorruption(rate=0.3, mean=3)  # BART's text infilling (Lewis et al. 2020, arXiv 1910.13461)


@dataclass(frozen=True)
class Sentence:
  """`SUBJECT [of CITY] VERB [ADJECTIVE] OBJECT .`"""

  subject: str
  verb: str
  object: str
  adjective: str = ""
  city: str = ""

  @property
  def words(self) -> list[str]:
    of = ["of", self.city] if self.city else []
    return [self.subject, *of, self.verb, *filter(None, [self.adjective]), self.object, "."]

  @property
  def harms(self) -> bool:
    return FINDINGS[self.verb][2]


@dataclass(frozen=True)
class Note:
  """What all tasks are about."""

  sentences: tuple[Sentence, ...]

  @property
  def words(self) -> list[str]:
    return [word for sentence in self.sentences for word in sentence.words]

  @property
  def findings(self) -> list[Sentence]:
    return [sentence for sentence in self.sentences if sentence.verb in FINDINGS]

  @property
  def patient(self) -> Sentence:
    return next(sentence for sentence in self.sentences if sentence.verb in STATES)

  def __str__(self) -> str:
    return " ".join(self.words)


def _names(note: Note, *, kinds: tuple[str, ...]) -> str:
  return listed([(word, KIND_OF[word]) for word in note.words if KIND_OF.get(word) in kinds], " or ".join(kinds))


_drugs, _genes, _diseases = (functools.partial(_names, kinds=(kind,)) for kind in MEDICAL)
_entities = functools.partial(_names, kinds=MEDICAL)


def _verbs(note: Note) -> str:
  return listed([(sentence.verb, "verb") for sentence in note.sentences], "verb")


def _adjectives(note: Note) -> str:
  return listed([(s.adjective, "adjective") for s in note.sentences if s.adjective], "adjective")


def _adverse(note: Note) -> str:
  return "yes" if any(finding.harms and KIND_OF[finding.subject] == "drug" for finding in note.findings) else "no"


def _genetic(note: Note) -> str:
  return "yes" if any(KIND_OF[finding.subject] == "gene" for finding in note.findings) else "no"


def _state(note: Note) -> str:
  return note.patient.object


def _status(note: Note) -> str:
  return KIND_OF[note.patient.object]


def _outlook(note: Note) -> str:
  harms = [finding.harms for finding in note.findings]
  return "bad" if all(harms) else "mixed" if any(harms) else "good"


def _hidden(note: Note) -> str:
  return " ".join(f"<{KIND_OF[w]}>" if KIND_OF.get(w) in ("person", "city") else w for w in note.words)


def listed(found: Sequence[tuple[str, str]], nothing: str) -> str:
  """`word <TYPE> , word <TYPE>`, as the paper writes entities; `no NOTHING` for none."""
  return " , ".join(f"{word} <{tag}>" for word, tag in found) or f"no {nothing}"


@dataclass(frozen=True)
class Skill:
  """What is asked of a note.

  Attributes:
    definition, prompt: of its instruction.
    answer: the one right answer.
    patient: whether it asks for the patient: what its instruction shows is then a sentence on one.
  """

  name: str
  category: str
  definition: str
  prompt: str
  answer: Callable[[Note], str]
  patient: bool = False


SKILLS = (
  Skill("drugs", "entities", "find the names of all drugs in the note and tag each", "list the drugs", _drugs),
  Skill("genes", "entities", "find the names of all genes in the note and tag each", "list the genes", _genes),
  Skill("diseases", "entities", "find the names of all diseases in the note and tag each", "list the diseases",
        _diseases),
  Skill("entities", "entities", "find every drug gene and disease in the note and tag each with its type",
        "list the entities", _entities),
  Skill("verbs", "parts of speech", "find the words of the note that are verbs and tag each", "list the verbs", _verbs),
  Skill("adjectives", "parts of speech", "find the words of the note that are adjectives and tag each",
        "list the adjectives", _adjectives),
  Skill("adverse", "yes or no", "answer yes if a drug of the note does harm and no otherwise", "does a drug do harm",
        _adverse),
  Skill("genetic", "yes or no", "answer yes if a gene of the note does something and no otherwise",
        "does a gene do something", _genetic),
  Skill("state", "factoid", "name the drug the disease or the gene that the patient takes has or carries",
        "what is it of the patient", _state, patient=True),
  Skill("outlook", "classification", "say whether the findings of the note are all good all bad or mixed",
        "what is the outlook", _outlook),
  Skill("status", "classification", "say whether the patient is told of with a drug a gene or a disease",
        "what kind is it", _status, patient=True),
  Skill("deidentify", "de-identification", "write the note again with person and city replaced by their type",
        "hide the identity", _hidden, patient=True),
)  # fmt: skip
# Whose instruction takes the place of one's own where instructions are swapped: of another category, always.
OTHER = dict(zip(SKILLS, SKILLS[5:] + SKILLS[:5], strict=True))


@gin.configurable
def clinical(
  *,
  instruction: str = "full",
  shown: int = 1,
  shared: bool = True,
  examples: int = 2000,
  validation: int = 16,
  test: int = 100,
  swapped: int = 0,
  seed: int = 0,
) -> Collection:
  """Tasks `clinical_<skill>`; held out are those whose instruction is another's.

  All tasks have the same inputs but for the instruction, in the same order, unless `shared` is False: no note of one's
  test split is in the training split of another, nor in an instruction. A longer split begins with a shorter one.

  `clinical_<skill>_as_<other>` has the inputs of the first with the instruction of the other, and the other's answer as
  its target; the two answers always differ. So its exact match is how often a change of instructions alone changes the
  task that is done. (Notes being shared, it is the other task's test item: nothing but the instruction names a task.)

  Args:
    instruction: before each input: "full" (definition, prompt and solved examples), "off", "constant" (one text for
      all tasks, as long as the longest instruction: its length says no more than its words), or "token" (one word).
    shown: solved examples of an instruction, of one sentence each.
    shared: False: every task has notes of its own.
    examples, validation, test: of a task, by split.
    swapped: test examples of each held-out task, at most `test`; 0: no such task.
    seed: another seed draws other notes. Names, instructions and their examples are always the same.

  Raises:
    UserError: an unknown instruction, a number of examples that is none, instructions to swap where all are alike.
  """
  if instruction not in INSTRUCTIONS:
    raise UserError(f"clinical.instruction {instruction!r} is not known", hint=did_you_mean(instruction, INSTRUCTIONS))
  family.check("clinical", counts={"examples": examples, "validation": validation, "test": test})
  if shown < 0:
    raise UserError(f"clinical.shown = {shown}", hint="it is a number of examples, at least 0")
  if not 0 <= swapped <= test:
    raise UserError(f"clinical.swapped = {swapped}", hint=f"it is from 0 to clinical.test, {test}")
  if swapped and instruction not in ("full", "token"):
    raise UserError(f"clinical.swapped = {swapped}: there is nothing to swap", hint=f"instruction is {instruction!r}")

  def task(name: str, asked: Skill, counts: dict[str, int]):
    make = functools.partial(draw, skill=asked, before=prefix(asked, instruction, shown))
    stream = "clinical" if shared else f"clinical {asked.name}"
    return family.task(name, asked.category, counts, make, seed=seed, stream=stream, metrics=("set_f1", "exact_match"))

  counts = {"test": test, "validation": validation, "train": examples}
  return Collection(
    "clinical",
    tuple(task(f"clinical_{skill.name}", skill, counts) for skill in SKILLS),
    tuple(
      task(f"clinical_{skill.name}_as_{other.name}", other, {"test": swapped})
      for skill, other in (OTHER.items() if swapped else ())
    ),
    citation="tasks after Parmar et al. 2022, arXiv 2204.07600",
    vocabulary=vocabulary,
  )


@gin.configurable
def clinical_text(*, documents: int = 20_000, validation: int = 100, before: int = 2, seed: int = 0) -> Collection:
  """Task `clinical_text`: notes with spans of their words masked, to be written in full.

  It is BART's text infilling: of 30 % of the words, one mask a span. The number of spans is fixed where BART draws
  their lengths. The notes are drawn apart from those of `clinical`.

  Args:
    documents, validation: notes in split `train` and `validation`.
    before: most other notes that stand before the masked one, so that a model expects a note at any place.
    seed: of notes and masks.

  Raises:
    UserError: a number of documents below 1, or of notes below 0.
  """
  family.check("clinical_text", counts={"documents": documents, "validation": validation})
  if before < 0:
    raise UserError(f"clinical_text.before = {before}", hint="it is a number of notes, at least 0")
  counts = {"validation": validation, "train": documents}
  make = functools.partial(draw_text, before=before)
  task = family.task("clinical_text", "text", counts, make, seed=seed)
  return Collection("clinical_text", (task,), vocabulary=vocabulary)


def draw(random: Random, *, skill: Skill, before: str) -> Row:
  """A note with the answer to what a skill asks."""
  note = written(random)
  return {"inputs": f"{before} {note}".strip(), "targets": skill.answer(note), "key": str(note)}


def draw_text(random: Random, *, before: int) -> Row:
  """Up to `before` notes and one with masked spans, and that note."""
  earlier = [str(written(random)) for _ in range(random.randint(0, before))]
  words = written(random).words
  mask = NOISE.mask(len(words), np.random.default_rng(random.getrandbits(64)))
  kept, _ = corrupted(range(len(words)), mask, lambda span: -1)
  masked = [words[i] if i >= 0 else MASK for i in kept]
  return {"inputs": " ".join([*earlier, *masked]), "targets": " ".join(words)}


def written(random: Random) -> Note:
  """A patient and two findings in any order. No name occurs twice."""
  left = _shuffled(random)
  sentences = [_patient(random, left), _finding(random, left), _finding(random, left)]
  random.shuffle(sentences)
  return Note(tuple(sentences))


def _shuffled(random: Random) -> dict[str, list[str]]:
  return {kind: random.sample(names, len(names)) for kind, names in KINDS.items()}


def _patient(random: Random, left: dict[str, list[str]]) -> Sentence:
  verb = random.choice(list(STATES))
  return Sentence(left["person"].pop(), verb, left[STATES[verb]].pop(), city=left["city"].pop())


def _finding(random: Random, left: dict[str, list[str]]) -> Sentence:
  verb = random.choice(list(FINDINGS))
  subject, object_, _ = FINDINGS[verb]
  adjective = random.choice(ADJECTIVES[object_]) if random.random() < 0.5 else ""
  return Sentence(left[subject].pop(), verb, left[object_].pop(), adjective)


def demonstrations(skill: Skill, number: int) -> tuple[Note, ...]:
  """What an instruction shows, the same for all seeds: of one sentence, so that no note of a split is one."""
  made = []
  for position in range(number):
    random = Random(f"clinical demonstration {position}")
    made.append(Note(((_patient if skill.patient else _finding)(random, _shuffled(random)),)))
  return tuple(made)


@functools.cache
def prefix(skill: Skill, instruction: str, shown: int) -> str:
  """What stands before a note."""
  if instruction == "token":
    return f"task_{SKILLS.index(skill)}"
  if instruction == "constant":
    longest = max(len(prefix(each, "full", shown).split()) for each in SKILLS)
    words = SAYS_NOTHING.split()
    return " ".join(words[i % len(words)] for i in range(longest))
  if instruction == "off":
    return ""
  solved = "".join(f" input : {example} output : {skill.answer(example)}" for example in demonstrations(skill, shown))
  return f"definition : {skill.definition} prompt : {skill.prompt}{solved} input :"


def vocabulary():
  """An id for every word."""
  words = sorted(set(_words()))
  return trained(words, size=len(words) + 3, model_type="word")  # pad, eos, unk


def _words() -> Iterator[str]:
  yield from KIND_OF
  yield from (*FINDINGS, *STATES, *(word for words in ADJECTIVES.values() for word in words))
  yield from (*KINDS, *(f"<{tag}>" for tag in (*KINDS, "verb", "adjective")))
  yield from "yes no or verb adjective good bad mixed of , . : definition prompt input output".split()
  yield from (MASK, *SAYS_NOTHING.split())
  for number, skill in enumerate(SKILLS):
    yield from (f"task_{number}", *skill.definition.split(), *skill.prompt.split())
