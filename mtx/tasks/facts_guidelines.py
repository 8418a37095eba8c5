"""Invented guidelines of treatment: which drug patients of an age group get first for a condition, before and now.

The medical suite of FineTuneBench (Wu et al. 2024, arXiv 2411.05059): guidelines change, and are asked for directly and
in vignettes, which tell a patient's age and leave the age group to be found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

ADULT = 16  # years
GROUPS = {"children": range(2, ADULT), "adults": range(ADULT, 90)}
ENDINGS = ("itis", "osis", "emia", "algia")
DRUGS = ("mab", "pril", "olol", "statin", "cillin", "azole")
SYLLABLES = tuple(onset + vowel for onset in "bdfgklmnprstvz" for vowel in "aeiou")
QUESTIONS = (
  "Which drug do {group} with {condition} get first?", "What is the first drug for {condition} in {group}?",
  "With which drug does the treatment of {condition} in {group} begin?", "{condition} in {group}: which drug first?",
  "Tell me the drug that guidelines name for {group} with {condition}.",
  "What should {group} who have {condition} be given?",
)  # fmt: skip
STATEMENTS = (
  "The first drug for {group} with {condition} is {drug}.", "In {group}, treat {condition} with {drug}.",
  "{drug} is what {group} with {condition} get first.",
)  # fmt: skip
VIGNETTE = "A patient who is {age} years old comes with {condition}. Which drug is given first?"

Question = tuple[str, str, str, tuple[str, ...]]  # id, question, answer, options


@dataclass(frozen=True)
class Guideline:
  """The drug that an age group gets first for a condition, now and before."""

  condition: str
  group: str
  drug: str
  before: str

  @property
  def revised(self) -> bool:
    return self.drug != self.before

  @property
  def key(self) -> str:
    return f"{self.condition}-{self.group}"


def drawn(number: int, revised: int, seed: int) -> tuple[Guideline, ...]:
  """`number` guidelines, of which the first `revised` have another drug than before.

  The two age groups of a condition have different drugs at any time, so that a vignette's age matters.
  """
  random = Random(f"guidelines {seed}")
  conditions, drugs = _names(random, -(-number // 2), ENDINGS), _names(random, 24, DRUGS)
  order = [(condition, group) for condition in conditions for group in GROUPS][:number]
  before: dict[tuple[str, str], str] = {}
  now: dict[tuple[str, str], str] = {}
  changing = set(random.sample(order, revised))
  for condition in conditions:
    free = random.sample(drugs, 2 * len(GROUPS))
    for group in GROUPS:
      before[condition, group] = now[condition, group] = free.pop()
      if (condition, group) in changing:
        now[condition, group] = free.pop()
  ordered = sorted(order, key=lambda each: each not in changing)
  return tuple(Guideline(*each, now[each], before[each]) for each in ordered)


def _names(random: Random, number: int, endings: Sequence[str]) -> list[str]:
  found: dict[str, None] = {}
  while len(found) < number:
    found["".join(random.choices(SYLLABLES, k=random.choice((2, 3)))) + random.choice(endings)] = None
  return list(found)


def direct(guidelines: Sequence[Guideline], ways: range, old: bool = False) -> list[Question]:
  """Each asked for in some of the ways of QUESTIONS."""
  return [
    (
      f"guideline-{each.key}-{way}",
      QUESTIONS[way].format(group=each.group, condition=each.condition),
      each.before if old else each.drug,
      (),
    )
    for each in guidelines
    for way in ways
  ]


def vignettes(guidelines: Sequence[Guideline]) -> list[Question]:
  """Two patients of different ages for each."""
  found: list[Question] = []
  for each in guidelines:
    for age in Random(f"vignettes {each.key}").sample(GROUPS[each.group], 2):
      question = VIGNETTE.format(age=age, condition=each.condition)
      found.append((f"guideline-{each.key}-aged-{age}", question, each.drug, ()))
  return found


def statements(guidelines: Sequence[Guideline], old: bool) -> list[Question]:
  """Sentences, the inputs empty."""
  return [
    (
      f"guideline-{each.key}-{i}",
      "",
      text.format(group=each.group, condition=each.condition, drug=each.before if old else each.drug),
      (),
    )
    for each in guidelines
    for i, text in enumerate(STATEMENTS)
  ]
