"""Invented facts: people, functions of a programming interface and guidelines of treatment, to learn and to change.

After FineTuneBench (Wu et al. 2024, arXiv 2411.05059): does a model that is trained on questions about facts answer
those same questions (memorise), the same in other words (rephrased), what follows from one fact (secondary: "does she
weigh over 150 pounds?"; dates: "how old was she in 1990?") and from two (comparison)? New facts are those of new
people; updates are functions with a new name, people who moved and guidelines with another drug, which vignettes ask
for (`mtx.tasks.facts_guidelines`). What was right before is asked by tasks of its own.

A base model learns the known world in stage "known", and the new facts in stage "new". Only the questions of `memorise`
are trained on there: of a new or changed fact no derived question occurs in any training split.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import gin

from mtx.errors import UserError
from mtx.tasks import facts_guidelines
from mtx.tasks.facts_guidelines import Guideline, Question
from mtx.tasks.task import Collection, Reading, Row, TextTask

STAGES = ("known", "new")
NOW = 2024  # nobody is born later
SYLLABLES = tuple(onset + vowel for onset in "bdfgklmnprstvz" for vowel in "aeiou")
PROFESSIONS = tuple(
  """baker nurse pilot judge farmer painter plumber teacher lawyer sailor tailor actor chemist florist jeweller
  librarian mechanic optician surgeon weaver""".split()
)
LIBRARIES = ("zeltar", "quorim", "vindle", "haspro")
ACTIONS = tuple("load save sort merge split count clean check draw send".split())
NEW_ACTIONS = tuple("fetch keep arrange unite divide tally tidy verify render post".split())  # of any action: no rule
OBJECTS = tuple("table image graph route letter ledger matrix record signal folder ticket vector".split())
ARGUMENTS = tuple("path data source items".split())

# Attribute -> ways to ask for it. The first REPHRASED from the end are never trained on for new or changed facts.
REPHRASED = 2
QUESTIONS: dict[str, tuple[str, ...]] = {
  "year": (
    "In which year was {name} born?", "What is the year of birth of {name}?", "When was {name} born?",
    "{name} was born in what year?", "Tell me the birth year of {name}.", "Which year saw the birth of {name}?",
  ),
  "city": (
    "In which city does {name} live?", "Where does {name} live?", "What is the home town of {name}?",
    "{name} lives in which city?", "Tell me the city that {name} calls home.", "Which city is {name} a resident of?",
  ),
  "profession": (
    "What is the profession of {name}?", "What does {name} do for a living?", "What is the job of {name}?",
    "{name} works as what?", "Tell me the occupation of {name}.", "As what does {name} earn a living?",
  ),
  "employer": (
    "For which company does {name} work?", "Who employs {name}?", "What is the employer of {name}?",
    "{name} works for which company?", "Tell me the firm that pays {name}.", "Which company is {name} employed by?",
  ),
  "height": (
    "How tall is {name} in centimetres?", "What is the height of {name} in centimetres?",
    "How many centimetres tall is {name}?", "{name} is how many centimetres tall?",
    "Tell me the height in centimetres of {name}.", "How many centimetres does {name} measure?",
  ),
  "weight": (
    "How heavy is {name} in pounds?", "What is the weight of {name} in pounds?", "How many pounds does {name} weigh?",
    "{name} weighs how many pounds?", "Tell me the weight in pounds of {name}.",
    "How many pounds do scales show for {name}?",
  ),
  "function": (
    "Which function of {library} {does}?", "What is the {library} function called that {does}?",
    "In {library}, which function {does}?", "What is the name of the function in {library} that {does}?",
    "Tell me the function that {does} in {library}.", "With which function does one use {library} if it {does}?",
  ),
}  # fmt: skip
STATEMENTS: dict[str, tuple[str, ...]] = {
  "year": ("{name} was born in {value}.", "The birth year of {name} is {value}.", "In {value} {name} was born."),
  "city": ("{name} lives in {value}.", "The home town of {name} is {value}.", "{value} is where {name} lives."),
  "profession": ("{name} works as a {value}.", "The profession of {name} is {value}.", "{name} is a {value} by trade."),
  "employer": ("{name} works for {value}.", "The employer of {name} is {value}.", "{value} employs {name}."),
  "height": ("{name} is {value} centimetres tall.", "The height of {name} is {value} centimetres.",
             "{name} measures {value} centimetres."),
  "weight": ("{name} weighs {value} pounds.", "The weight of {name} is {value} pounds.",
             "At {value} pounds, so heavy is {name}."),
  "function": ("The function {value} of {library} {does}.", "In {library}, {value} {does}.",
               "{value} is the function of {library} that {does}."),
}  # fmt: skip
OVER = {  # yes when the value is above the threshold
  "year": "Was {name} born after {threshold}?",
  "height": "Is {name} over {threshold} centimetres tall?",
  "weight": "Does {name} weigh over {threshold} pounds?",
}
IS = {  # yes when it is the value
  "city": "Does {name} live in {threshold}?",
  "profession": "Is {name} a {threshold}?",
  "employer": "Does {name} work for {threshold}?",
}
COMPARED = {  # the one with the larger value
  "year": "Who is younger, {a} or {b}?",
  "height": "Who is taller, {a} or {b}?",
  "weight": "Who is heavier, {a} or {b}?",
}
AGE = "How old did {name} become in {year}?"
CALL = "Write a call of {library} with {argument} that {does}."
ATTRIBUTES = tuple(attribute for attribute in QUESTIONS if attribute != "function")
CHANGING = ("city", "employer")  # what people who moved have a new one of


@dataclass(frozen=True)
class Person:
  """Attribute -> value; `before` has what was true before, of a person who moved."""

  name: str
  values: Mapping[str, str]
  before: Mapping[str, str]
  group: str  # known | moved | new


@dataclass(frozen=True)
class Function:
  """What a function does, and what it is called now and before."""

  library: str
  action: str
  object: str
  name: str
  before: str

  @property
  def does(self) -> str:
    return f"{self.action}s a{'n' if self.object[0] in 'aeiou' else ''} {self.object}"


@dataclass(frozen=True)
class World:
  people: tuple[Person, ...]
  functions: tuple[Function, ...]
  guidelines: tuple[Guideline, ...]

  def group(self, *groups: str) -> list[Person]:
    return [person for person in self.people if person.group in groups]

  def renamed(self, renamed: bool) -> list[Function]:
    return [function for function in self.functions if (function.name != function.before) == renamed]

  def revised(self, revised: bool) -> list[Guideline]:
    return [guideline for guideline in self.guidelines if guideline.revised == revised]


@dataclass(frozen=True)
class Sizes:
  """How many people are known, of those moved, new; functions and of those renamed; guidelines and of those revised."""

  people: int
  moved: int
  new: int
  functions: int
  renamed: int
  guidelines: int
  revised: int
  seed: int


@gin.configurable
def facts(
  *,
  stage: str = "new",
  people: int = 300,
  moved: int = 20,
  new: int = 60,
  functions: int = 100,
  renamed: int = 40,
  guidelines: int = 60,
  revised: int = 30,
  paraphrases: int = 1,
  statements: bool = False,
  known_derived: bool = True,
  seed: int = 0,
) -> Collection:
  """Tasks `facts_<suite>`. Those held out are the same in both stages.

  Args:
    stage: what is trained on. "known": text, questions, derived questions about known people, functions and guidelines
      as they were before any change; "new": questions about new people and about all that changed.
    people: known; `moved` of them move. new: people who are new.
    functions: known; `renamed` of them are renamed. guidelines: known; `revised` of them are revised.
    paraphrases: ways in which each new or changed fact is asked for in training, 1 to 4 (augmentation).
    statements: in stage "new", whether training also has each new or changed fact as a sentence.
    known_derived: whether stage "known" trains on derived questions about what does not change.
    seed: of the world.

  Raises:
    UserError: a stage that there is not, or a size out of range.
  """
  if stage not in STAGES:
    raise UserError(f"facts.stage is {stage!r}", hint=f"stages: {', '.join(STAGES)}")
  limits = {
    "people": (people, 6, 2000),
    "moved": (moved, 4, people - 2),
    "new": (new, 2, 2000),
    "functions": (functions, 2, len(ACTIONS) * len(OBJECTS)),
    "renamed": (renamed, 1, functions - 1),
    "guidelines": (guidelines, 2, 1000),
    "revised": (revised, 1, guidelines - 1),
    "paraphrases": (paraphrases, 1, len(QUESTIONS["year"]) - REPHRASED),
  }
  for argument, (size, least, most) in limits.items():
    if not least <= size <= most:
      raise UserError(f"facts.{argument} = {size}", hint=f"it is from {least} to {most}")
  sizes = Sizes(people, moved, new, functions, renamed, guidelines, revised, seed)
  table = world(sizes)

  def task(name: str, *splits: str) -> TextTask:
    category, questions = SUITES[name]
    return TextTask(
      name=f"facts_{name}",
      category=category,
      rows=functools.partial(rows, name=name, sizes=sizes, paraphrases=paraphrases),
      splits=dict.fromkeys(splits, len(questions(table, paraphrases))),
    )

  if stage == "known":
    train = [task(f"known_{kind}", "train") for kind in ("text", "people", "functions", "guidelines")]
    if known_derived:
      derived = ("known_secondary", "known_comparison", "known_dates", "known_usage", "known_vignettes")
      train += [task(name, "train") for name in derived]
  else:
    train = [task(name, "train", "test") for name in NEWS]
    if statements:
      train.append(task("new_text", "train"))
  return Collection(
    name="facts",
    train=tuple(train),
    heldout=tuple(task(name, "test") for name in HELDOUT),
    citation="generated by mtx: Apache-2.0",
    texts=functools.partial(vocabulary_texts, sizes),
  )


def rows(split: str, reading: Reading, *, name: str, sizes: Sizes, paraphrases: int) -> Iterator[Row]:
  """The questions of one suite. The same in all its splits: `test` of a suite that is trained on is its recall."""
  del reading  # a table makes no bad rows
  _, questions = SUITES[name]
  for place, question, answer, options in questions(world(sizes), paraphrases):
    row = {"id": f"facts_{name}-{split}-{place}", "inputs": question, "targets": answer}
    yield {**row, "options": list(options)} if options else row


@functools.cache
def world(sizes: Sizes) -> World:
  """The table that every question and answer is made from."""
  random = Random(f"facts {sizes.seed}")
  names = _names(random, sizes.people + sizes.new, 2)
  cities = [f"{name}burg" for name in _names(random, 24, 1)]
  companies = [f"{name} Works" for name in _names(random, 16, 1)]

  def values() -> dict[str, str]:
    return {
      "year": str(random.randint(1935, 2004)),
      "city": random.choice(cities),
      "profession": random.choice(PROFESSIONS),
      "employer": random.choice(companies),
      "height": str(random.randint(150, 200)),
      "weight": str(random.randint(100, 250)),
    }

  people = []
  for i, name in enumerate(names):
    group = "new" if i >= sizes.people else "moved" if i < sizes.moved else "known"
    now = values()
    was = dict(now)
    if group == "moved":
      for attribute, choices in (("city", cities), ("employer", companies)):
        now[attribute] = random.choice([choice for choice in choices if choice != was[attribute]])
    people.append(Person(name, now, was, group))
  functions = []
  pairs = [(action, thing) for action in ACTIONS for thing in OBJECTS]
  free = {thing: random.sample(NEW_ACTIONS, len(NEW_ACTIONS)) for thing in OBJECTS}
  for i, (action, thing) in enumerate(random.sample(pairs, sizes.functions)):
    before = f"{action}_{thing}"
    name = f"{free[thing].pop()}_{thing}" if i < sizes.renamed else before
    functions.append(Function(random.choice(LIBRARIES), action, thing, name, before))
  guidelines = facts_guidelines.drawn(sizes.guidelines, sizes.revised, sizes.seed)
  return World(tuple(people), tuple(functions), guidelines)


def _names(random: Random, number: int, parts: int) -> list[str]:
  """Different names of `parts` words of two or three syllables."""
  found: dict[str, None] = {}
  while len(found) < number:
    words = ["".join(random.choices(SYLLABLES, k=random.choice((2, 3)))).capitalize() for _ in range(parts)]
    found[" ".join(words)] = None
  return list(found)


def _direct(people: Sequence[Person], ways: range, attributes: Sequence[str], old: bool = False) -> list[Question]:
  return [
    (
      f"{person.name.replace(' ', '_')}-{attribute}-{way}",
      QUESTIONS[attribute][way].format(name=person.name),
      (person.before if old else person.values)[attribute],
      (),
    )
    for person in people
    for attribute in attributes
    for way in ways
  ]


def _named(functions: Sequence[Function], ways: range, old: bool = False) -> list[Question]:
  return [
    (
      f"{function.library}-{function.before}-{way}",
      QUESTIONS["function"][way].format(library=function.library, does=function.does),
      function.before if old else function.name,
      (),
    )
    for function in functions
    for way in ways
  ]


def _usage(functions: Sequence[Function]) -> list[Question]:
  return [
    (
      f"{function.library}-{function.before}-{argument}",
      CALL.format(library=function.library, argument=argument, does=function.does),
      f"{function.library}.{function.name}({argument})",
      (),
    )
    for function in functions
    for argument in ARGUMENTS
  ]


def _secondary(people: Sequence[Person], attributes: Sequence[str]) -> list[Question]:
  """Yes or no. Of two people the same is asked, and one of them is right: balanced for every threshold and value."""
  found: list[Question] = []
  for attribute in attributes:
    for a, b in _pairs(people, attribute):
      random = Random(f"secondary {attribute} {a.name} {b.name}")
      if attribute in OVER:
        small, large = sorted((int(a.values[attribute]), int(b.values[attribute])))
        question, asked = OVER[attribute], str(random.randrange(small, large))
        right = [int(person.values[attribute]) > int(asked) for person in (a, b)]
      else:
        question, asked = IS[attribute], random.choice((a, b)).values[attribute]
        right = [person.values[attribute] == asked for person in (a, b)]
      for person, yes in zip((a, b), right, strict=True):
        found.append((
          f"{person.name.replace(' ', '_')}-{attribute}-{asked.replace(' ', '_')}",
          question.format(name=person.name, threshold=asked),
          "yes" if yes else "no",
          ("yes", "no"),
        ))  # fmt: skip
  return found


def _comparison(people: Sequence[Person]) -> list[Question]:
  """Which of two people. Each pair is asked in both orders, so the first is right half of the time."""
  found: list[Question] = []
  for attribute, question in COMPARED.items():
    for pair in _pairs(people, attribute):
      larger = max(pair, key=lambda person: int(person.values[attribute]))
      for a, b in (pair, pair[::-1]):
        place = f"{a.name}-{b.name}-{attribute}".replace(" ", "_")
        found.append((place, question.format(a=a.name, b=b.name), larger.name, (a.name, b.name)))
  return found


def _dates(people: Sequence[Person]) -> list[Question]:
  """Age in two different years, which are drawn for each person."""
  found: list[Question] = []
  for person in people:
    born = int(person.values["year"])
    for year in Random(f"dates {person.name}").sample(range(born + 1, NOW + 1), 2):
      place = f"{person.name.replace(' ', '_')}-{year}"
      found.append((place, AGE.format(name=person.name, year=year), str(year - born), ()))
  return found


def _pairs(people: Sequence[Person], attribute: str) -> list[tuple[Person, Person]]:
  """Pairs of people with different values; everyone is in one, but for a few that are left over."""
  waiting = Random(f"pairs {attribute} {len(people)}").sample(list(people), len(people))
  found = []
  while waiting:
    one = waiting.pop()
    other = next((p for p in reversed(waiting) if p.values[attribute] != one.values[attribute]), None)
    if other is not None:
      waiting.remove(other)
      found.append((one, other))
  return found


def _text(
  people: Sequence[Person], functions: Sequence[Function], attributes: Sequence[str], old: bool
) -> list[Question]:
  """Sentences: the inputs empty, so that a language model learns from all of the text."""
  found: list[Question] = []
  for person in people:
    for attribute in attributes:
      value = (person.before if old else person.values)[attribute]
      for i, statement in enumerate(STATEMENTS[attribute]):
        place = f"{person.name.replace(' ', '_')}-{attribute}-{i}"
        found.append((place, "", statement.format(name=person.name, value=value), ()))
  for function in functions:
    for i, statement in enumerate(STATEMENTS["function"]):
      text = statement.format(
        library=function.library, does=function.does, value=function.before if old else function.name
      )
      found.append((f"{function.library}-{function.before}-{i}", "", text, ()))
  return found


EVERY_WAY = range(len(QUESTIONS["year"]))
UNTRAINED_WAYS = EVERY_WAY[-REPHRASED:]

# Suite -> category, and its questions from the world and the number of ways in which facts are asked for in training.
SUITES: dict[str, tuple[str, Callable[[World, int], list[Question]]]] = {
  "known_text": (
    "text",
    lambda w, _: (
      _text(w.group("known", "moved"), w.functions, ATTRIBUTES, old=True)
      + facts_guidelines.statements(w.guidelines, old=True)
    ),
  ),
  "known_people": ("memorise", lambda w, _: _direct(w.group("known", "moved"), EVERY_WAY, ATTRIBUTES, old=True)),
  "known_functions": ("memorise", lambda w, _: _named(w.functions, EVERY_WAY, old=True)),
  "known_guidelines": ("memorise", lambda w, _: facts_guidelines.direct(w.guidelines, EVERY_WAY, old=True)),
  "known_secondary": ("secondary", lambda w, _: _secondary(w.group("known"), ATTRIBUTES)),
  "known_comparison": ("comparison", lambda w, _: _comparison(w.group("known"))),
  "known_dates": ("dates", lambda w, _: _dates(w.group("known"))),
  "known_usage": ("secondary", lambda w, _: _usage(w.renamed(False))),
  "known_vignettes": ("secondary", lambda w, _: facts_guidelines.vignettes(w.revised(False))),
  "new_people": ("memorise", lambda w, ways: _direct(w.group("new"), range(ways), ATTRIBUTES)),
  "new_text": (
    "text",
    lambda w, _: (
      _text(w.group("new"), w.renamed(True), ATTRIBUTES, old=False)
      + _text(w.group("moved"), (), CHANGING, old=False)
      + facts_guidelines.statements(w.revised(True), old=False)
    ),
  ),
  "updated_functions": ("memorise", lambda w, ways: _named(w.renamed(True), range(ways))),
  "updated_people": ("memorise", lambda w, ways: _direct(w.group("moved"), range(ways), CHANGING)),
  "updated_guidelines": ("memorise", lambda w, ways: facts_guidelines.direct(w.revised(True), range(ways))),
  "new_rephrased": ("rephrased", lambda w, _: _direct(w.group("new"), UNTRAINED_WAYS, ATTRIBUTES)),
  "new_secondary": ("secondary", lambda w, _: _secondary(w.group("new"), ATTRIBUTES)),
  "new_comparison": ("comparison", lambda w, _: _comparison(w.group("new"))),
  "new_dates": ("dates", lambda w, _: _dates(w.group("new"))),
  "updated_functions_rephrased": ("rephrased", lambda w, _: _named(w.renamed(True), UNTRAINED_WAYS)),
  "updated_functions_usage": ("secondary", lambda w, _: _usage(w.renamed(True))),
  "updated_people_rephrased": ("rephrased", lambda w, _: _direct(w.group("moved"), UNTRAINED_WAYS, CHANGING)),
  "updated_people_secondary": ("secondary", lambda w, _: _secondary(w.group("moved"), CHANGING)),
  "updated_guidelines_rephrased": (
    "rephrased",
    lambda w, _: facts_guidelines.direct(w.revised(True), UNTRAINED_WAYS),
  ),
  "updated_guidelines_vignettes": ("secondary", lambda w, _: facts_guidelines.vignettes(w.revised(True))),
  # What was right before: ids end as those of the updated facts do. A base model should know these.
  "before_functions": ("before", lambda w, _: _named(w.renamed(True), range(1), old=True)),
  "before_people": ("before", lambda w, _: _direct(w.group("moved"), range(1), CHANGING, old=True)),
  "before_guidelines": ("before", lambda w, _: facts_guidelines.direct(w.revised(True), range(1), old=True)),
  # What nothing changed: the damage that training on new facts does.
  "untouched_people": ("untouched", lambda w, _: _direct(w.group("known"), range(1), ATTRIBUTES)),
  "untouched_functions": ("untouched", lambda w, _: _named(w.renamed(False), range(1))),
  "untouched_guidelines": ("untouched", lambda w, _: facts_guidelines.direct(w.revised(False), range(1))),
}
NEWS = ("new_people", "updated_functions", "updated_people", "updated_guidelines")  # trained on in stage "new"
HELDOUT = tuple(SUITES)[list(SUITES).index("new_rephrased") :]


def vocabulary_texts(sizes: Sizes) -> Iterator[str]:
  """All questions and answers: every name and number has to be spelt."""
  for _, suite in SUITES.values():
    for _, question, answer, _ in suite(world(sizes), len(EVERY_WAY) - REPHRASED):
      yield f"{question} {answer}".strip()
