"""The world of facts: every answer recomputed from the table, what is balanced counted, nothing leaked."""

import pickle
import re
from collections import Counter, defaultdict

import pytest

from mtx.errors import UserError
from mtx.tasks import facts_guidelines
from mtx.tasks.facts import ATTRIBUTES, CHANGING, QUESTIONS, REPHRASED, STATEMENTS, Sizes, facts, world
from mtx.tasks.task import Reading

TABLE = world(Sizes(300, 20, 60, 100, 40, 60, 30, 0))
PEOPLE = {person.name: person for person in TABLE.people}
NAME = r"([A-Z][a-z]+ [A-Z][a-z]+)"


def rows(task):
  return {split: list(task.rows(split, Reading())) for split in task.splits}


@pytest.fixture(scope="module")
def stages():
  """stages[stage]["train" or "heldout"]: suite -> split -> rows."""
  collections = {stage: facts(stage=stage, statements=True, paraphrases=2) for stage in ("known", "new")}
  return {
    stage: {
      part: {task.name.removeprefix("facts_"): rows(task) for task in getattr(collection, part)}
      for part in ("train", "heldout")
    }
    for stage, collection in collections.items()
  }


def asked(question):
  """(name, attribute) of a direct question, by its words."""
  for attribute in ATTRIBUTES:
    for template in QUESTIONS[attribute]:
      if found := re.fullmatch(re.escape(template).replace(r"\{name\}", NAME), question):
        return found[1], attribute
  raise AssertionError(question)


def test_direct_questions_are_answered_by_the_table(stages):
  number = 0
  for stage, parts in stages.items():
    for part in parts.values():
      for suite, splits in part.items():
        if not suite.endswith(("people", "rephrased")) or "functions" in suite or "guidelines" in suite:
          continue
        for row in (row for split in splits.values() for row in split):
          name, attribute = asked(row["inputs"])
          person = PEOPLE[name]
          assert person.group == suite.split("_")[0].replace("updated", "moved").replace("before", "moved").replace(
            "untouched", "known"
          ) or (suite == "known_people" and person.group == "moved")
          old = (stage == "known" and suite == "known_people") or suite.startswith("before")
          assert row["targets"] == (person.before if old else person.values)[attribute]
          number += 1
  assert number > 15_000


def test_thresholds_are_recomputed_and_balanced_for_each_threshold(stages):
  for stage, part, suite in (
    ("known", "train", "known_secondary"), ("new", "heldout", "new_secondary"),
    ("new", "heldout", "updated_people_secondary"),
  ):  # fmt: skip
    answers = defaultdict(Counter)
    for row in next(iter(stages[stage][part][suite].values())):
      [name] = re.findall(NAME, row["inputs"].partition(" ")[2])[:1]
      value, question = PEOPLE[name].values, row["inputs"]
      if found := re.search(r"born after (\d+)|over (\d+) centimetres|over (\d+) pounds", question):
        attribute = ("year", "height", "weight")[found.lastindex - 1]
        right = int(value[attribute]) > int(found[found.lastindex])
      elif found := re.search(r"live in (\w+)|Is .* a (\w+)\?|work for (\w+ Works)", question):
        right = value[("city", "profession", "employer")[found.lastindex - 1]] == found[found.lastindex]
      assert row["targets"] == ("yes" if right else "no") and row["options"] == ["yes", "no"]
      answers[question.replace(name, "")][row["targets"]] += 1
    assert len(answers) > 10
    for template, counts in answers.items():
      assert counts["yes"] == counts["no"], template
  assert len(stages["new"]["heldout"]["new_secondary"]["test"]) >= 350


def test_comparisons_are_recomputed_and_balanced(stages):
  keys = {"younger": "year", "taller": "height", "heavier": "weight"}
  for part in (stages["known"]["train"]["known_comparison"], stages["new"]["heldout"]["new_comparison"]):
    [found] = part.values()
    first = Counter()
    for row in found:
      word, a, b = re.fullmatch(rf"Who is (\w+), {NAME} or {NAME}\?", row["inputs"]).groups()
      larger = max((a, b), key=lambda name: int(PEOPLE[name].values[keys[word]]))
      assert row["targets"] == larger and row["options"] == [a, b]
      assert PEOPLE[a].values[keys[word]] != PEOPLE[b].values[keys[word]]
      first[larger == a] += 1
    assert first[True] == first[False] == len(found) / 2


def test_dates_are_recomputed(stages):
  [found] = stages["new"]["heldout"]["new_dates"].values()
  assert len(found) == 120
  for row in found:
    name, year = re.fullmatch(rf"How old did {NAME} become in (\d+)\?", row["inputs"]).groups()
    assert int(row["targets"]) == int(year) - int(PEOPLE[name].values["year"]) > 0
  assert len({row["inputs"] for row in found}) == 120


def test_functions_and_their_calls(stages):
  functions = {(function.library, function.does): function for function in TABLE.functions}
  assert len(functions) == 100 and len(TABLE.renamed(True)) == 40
  names = [function.name for function in TABLE.functions]
  assert len(set(names)) == 100
  assert not {f.name for f in TABLE.renamed(True)} & {f.before for f in TABLE.functions}
  number = 0
  for parts in stages.values():
    for part in parts.values():
      for suite, splits in part.items():
        if "functions" not in suite and "usage" not in suite:
          continue
        for row in (row for split in splits.values() for row in split):
          [function] = [f for (library, does), f in functions.items() if library in row["inputs"].split(" ")
                        + [w.strip(",.?") for w in row["inputs"].split()] and does in row["inputs"]]  # fmt: skip
          old = suite in ("known_functions", "before_functions")
          name = function.before if old else function.name
          if "usage" in suite:
            argument = re.search(r"with (\w+) that", row["inputs"])[1]
            assert row["targets"] == f"{function.library}.{name}({argument})"
          else:
            assert row["targets"] == name
          assert (function.name != function.before) == suite.startswith(("updated", "before")) or suite[:5] == "known"
          number += 1
  assert number > 1000


def test_guidelines_and_their_vignettes(stages):
  """The table answers; the groups of a condition differ at any time, so that the age in a vignette decides."""
  guidelines = {(each.condition, each.group): each for each in TABLE.guidelines}
  assert len(guidelines) == 60 and len(TABLE.revised(True)) == 30
  for condition in {each.condition for each in TABLE.guidelines}:
    pair = [guidelines[condition, group] for group in facts_guidelines.GROUPS]
    assert pair[0].drug != pair[1].drug and pair[0].before != pair[1].before
    assert len({*(each.drug for each in pair), *(each.before for each in pair)}) == 2 + sum(e.revised for e in pair)
  found = Counter()
  for parts in stages.values():
    for part in parts.values():
      for suite, splits in part.items():
        if "guidelines" not in suite and "vignettes" not in suite:
          continue
        for row in (row for split in splits.values() for row in split):
          [condition] = {each.condition for each in TABLE.guidelines if each.condition in row["inputs"]}
          if "vignettes" in suite:
            group = "children" if int(re.search(r"is (\d+) years", row["inputs"])[1]) < 16 else "adults"
          else:
            [group] = [group for group in facts_guidelines.GROUPS if group in row["inputs"]]
          each = guidelines[condition, group]
          assert row["targets"] == (each.before if suite in ("known_guidelines", "before_guidelines") else each.drug)
          assert suite == "known_guidelines" or each.revised == suite.startswith(("updated", "before"))
          found[suite] += 1
  # Those held out are asked in both stages; of what is trained on, splits train and test are the same.
  assert found == {
    "known_guidelines": 360, "known_vignettes": 60, "updated_guidelines": 120, "updated_guidelines_rephrased": 120,
    "updated_guidelines_vignettes": 120, "before_guidelines": 60, "untouched_guidelines": 60,
  }  # fmt: skip
  said = {row["targets"] for row in stages["new"]["train"]["new_text"]["train"]}
  assert all(f"In {e.group}, treat {e.condition} with {e.drug}." in said for e in TABLE.revised(True))


def test_before_and_after_have_the_same_questions_and_ids(stages):
  for kind, number in {"people": 40, "functions": 40, "guidelines": 30}.items():
    [before] = stages["new"]["heldout"][f"before_{kind}"].values()
    after = {r["id"].split("-", 2)[2]: r for r in stages["new"]["train"][f"updated_{kind}"]["test"]}
    assert len(before) == number
    for row in before:
      changed = after[row["id"].split("-", 2)[2]]
      assert changed["inputs"] == row["inputs"] and changed["targets"] != row["targets"]


def test_new_and_changed_facts_are_only_learned_from_their_own_questions(stages):
  """No training split of either stage derives anything from them, asks in held-out words, or says new names early."""
  news = {person.name for person in TABLE.group("new")}
  moved = {person.name for person in TABLE.group("moved")}
  known, new = stages["known"]["train"], stages["new"]["train"]
  text = " ".join(f"{row['inputs']} {row['targets']}" for suite in known.values() for row in suite["train"])
  assert not any(name in text for name in news)
  assert not any(re.search(rf"\b{function.name}\b", text) for function in TABLE.renamed(True))
  for suite in ("known_secondary", "known_comparison", "known_dates", "known_usage"):
    for row in known[suite]["train"]:
      assert not (news | moved) & set(re.findall(NAME, row["inputs"].partition(" ")[2]))
  assert not any(name in row["inputs"] for name in moved for row in known["known_dates"]["train"])
  trained = {row["inputs"] for suite in new.values() for row in suite["train"]} - {""}
  derived = {row["inputs"] for name, suite in stages["new"]["heldout"].items() for row in suite["test"]
             if name.startswith(("new", "updated"))}  # fmt: skip
  assert trained and derived and not trained & derived
  every = {row["inputs"] for suite in known.values() for row in suite["train"]}
  assert not derived & (every - {row["inputs"] for row in known["known_people"]["train"]}
                        - {row["inputs"] for row in known["known_functions"]["train"]}
                        - {row["inputs"] for row in known["known_guidelines"]["train"]})  # fmt: skip
  direct = {template.format(name=name) for name in news for attribute in ATTRIBUTES
            for template in QUESTIONS[attribute][: -REPHRASED]}  # fmt: skip
  assert {row["inputs"] for row in new["new_people"]["train"]} <= direct
  assert not any(row["inputs"] in direct for row in stages["new"]["heldout"]["new_rephrased"]["test"])


def test_statements_say_the_table(stages):
  for stage, suite in (("known", "known_text"), ("new", "new_text")):
    said = {row["targets"] for row in stages[stage]["train"][suite]["train"]}
    assert all(row["inputs"] == "" for row in stages[stage]["train"][suite]["train"])
    moved, other = TABLE.group("moved")[0], TABLE.group("known" if stage == "known" else "new")[0]
    values = moved.before if stage == "known" else moved.values
    for statement in STATEMENTS["city"]:
      assert statement.format(name=moved.name, value=values["city"]) in said
      assert statement.format(name=other.name, value=other.values["city"]) in said
    function = TABLE.renamed(True)[0]
    name = function.before if stage == "known" else function.name
    assert f"In {function.library}, {name} {function.does}." in said


def test_who_moved_has_something_new_and_all_else_as_before():
  for person in TABLE.people:
    changed = {attribute for attribute in ATTRIBUTES if person.values[attribute] != person.before[attribute]}
    assert changed == (set(CHANGING) if person.group == "moved" else set())
  assert Counter(person.group for person in TABLE.people) == {"known": 280, "moved": 20, "new": 60}
  assert len(PEOPLE) == 360


def test_augmentation_adds_ways_and_leaves_the_rest():
  one, four = facts(paraphrases=1), facts(paraphrases=4)
  assert [t.splits for t in one.train] == [{"train": n, "test": n} for n in (360, 40, 40, 30)]
  assert [t.splits for t in four.train] == [{"train": 4 * n, "test": 4 * n} for n in (360, 40, 40, 30)]
  fewer, more = ({r["inputs"] for r in rows(c.train[0])["train"]} for c in (one, four))
  assert fewer < more and len(more) == 4 * 360
  assert [rows(a) for a in one.heldout] == [rows(b) for b in four.heldout]


def test_counts_are_exact_ids_unique_and_rows_the_same_in_every_process():
  for stage in ("known", "new"):
    collection = facts(stage=stage, statements=True)
    assert len({task.name for task in (*collection.train, *collection.heldout)}) == len(
      (*collection.train, *collection.heldout)
    )
    for task in (*collection.train, *collection.heldout):
      found = rows(task)
      assert {split: len(each) for split, each in found.items()} == task.splits and min(task.splits.values()) > 0
      assert all(len({row["id"] for row in each}) == len(each) for each in found.values())
      assert rows(pickle.loads(pickle.dumps(task))) == found
  assert rows(facts(seed=1).heldout[0]) != rows(facts().heldout[0])
  assert {t.name for t in facts(stage="known").heldout} == {t.name for t in facts().heldout}
  assert not any("derived" in t.name or "usage" in t.name for t in facts(stage="known", known_derived=False).train)


def test_the_vocabulary_sees_every_name():
  said = " ".join(facts().texts())
  assert all(name in said for name in PEOPLE)
  assert all(function.name in said and function.before in said for function in TABLE.functions)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"stage": "news"}, r"facts\.stage is 'news'\n  stages: known, new"),
    ({"paraphrases": 5}, r"facts\.paraphrases = 5\n  it is from 1 to 4"),
    ({"renamed": 100}, r"facts\.renamed = 100\n  it is from 1 to 99"),
    ({"functions": 500}, r"facts\.functions = 500\n  it is from 2 to 120"),
    ({"new": 1}, r"facts\.new = 1\n  it is from 2"),
    ({"moved": 300}, r"facts\.moved = 300\n  it is from 4 to 298"),
    ({"revised": 60}, r"facts\.revised = 60\n  it is from 1 to 59"),
    ({"guidelines": 1}, r"facts\.guidelines = 1\n  it is from 2 to 1000"),
    ({"people": 0}, r"facts\.people = 0"),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(UserError, match=message):
    facts(**arguments)
