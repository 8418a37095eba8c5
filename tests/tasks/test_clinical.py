"""Clinical tasks: every answer read off the words again, inputs that are the same in all tasks, and no leak."""

import pickle
import re
from collections import Counter

import pytest
import sentencepiece

from mtx.errors import UserError
from mtx.tasks.clinical import KINDS, OTHER, SKILLS, clinical, clinical_text, demonstrations, prefix, vocabulary
from mtx.tasks.metrics import scores
from mtx.tasks.task import Reading

ENDINGS = {"mab": "drug", "ase": "gene", "itis": "disease"}
GOOD, BAD = {"treats", "eases", "repairs", "prevents"}, {"causes", "worsens", "blocks", "drives"}
ADJECTIVES = {"severe", "mild", "chronic", "acute", "mutant", "silent", "active", "rare"}


def rows(task, split="test"):
  return list(task.rows(split, Reading()))


def kind(word):
  return next((kind for ending, kind in ENDINGS.items() if word.endswith(ending)), None)


def answers(note):
  """What the tasks ask, from the words alone."""
  words = note.split()
  sentences = [sentence.split() for sentence in note.removesuffix(" .").split(" . ")]
  findings = [sentence for sentence in sentences if (GOOD | BAD) & set(sentence)]
  [state] = [sentence[-1] for sentence in sentences if sentence not in findings] or [None]
  tagged = lambda found, nothing: ", ".join(f"{word} <{tag}>" for word, tag in found) or f"no {nothing}"
  listed = lambda *kinds: tagged([(w, kind(w)) for w in words if kind(w) in kinds], " or ".join(kinds))
  verbs = [(w, "verb") for w in words if w in GOOD | BAD | {"takes", "has", "carries"}]
  return {
    "drugs": listed("drug"),
    "genes": listed("gene"),
    "diseases": listed("disease"),
    "entities": listed("drug", "gene", "disease"),
    "verbs": tagged(verbs, "verb"),
    "adjectives": tagged([(w, "adjective") for w in words if w in ADJECTIVES], "adjective"),
    "adverse": "yes" if any(f[0].endswith("mab") and f[1] in BAD for f in findings) else "no",
    "genetic": "yes" if any(f[0].endswith("ase") for f in findings) else "no",
    "state": state,
    "status": kind(state or ""),
    "outlook": {2: "bad", 1: "mixed", 0: "good"}[sum(f[1] in BAD for f in findings)],
    "deidentify": re.sub(r"\w+son of \w+ville", "<person> of <city>", note),
  }


def test_every_answer_can_be_read_off_the_words():
  for skill, task in zip(SKILLS, clinical(instruction="off", examples=300).train, strict=True):
    for row in rows(task, "train"):
      gold = answers(row["inputs"])[skill.name]
      assert row["targets"].replace(" , ", ", ") == gold and scores("set_f1", [[gold]], [row["targets"]]) == [100], row


def test_all_tasks_have_the_same_inputs_and_no_text_is_in_two_splits():
  given = {task.name: [rows(task, split) for split in task.splits] for task in clinical(instruction="off").train}
  texts = [[row["inputs"] for row in split] for split in given.pop("clinical_drugs")]
  assert len({text for split in texts for text in split}) == sum(map(len, texts))
  for splits in given.values():
    assert [[row["inputs"] for row in split] for split in splits] == texts
  shown = {str(note) for skill in SKILLS for note in demonstrations(skill, 3)}
  assert len(shown) == 6 and not any(shown & set(split) for split in texts)


@pytest.mark.parametrize("instruction", ["full", "constant", "token"])
def test_an_instruction_stands_before_what_is_else_the_same(instruction):
  found = set()
  for with_it, bare in zip(clinical(instruction=instruction).train, clinical(instruction="off").train, strict=True):
    asked = {row["inputs"].removesuffix(plain["inputs"]) for row, plain in zip(rows(with_it), rows(bare), strict=True)}
    assert len(asked) == 1 and asked.pop().endswith(" ")
    assert [row["targets"] for row in rows(with_it)] == [row["targets"] for row in rows(bare)]
    found.add(rows(with_it)[0]["inputs"].removesuffix(rows(bare)[0]["inputs"]))
  assert len(found) == (1 if instruction == "constant" else len(SKILLS))


def test_the_constant_is_as_long_as_the_longest_instruction():
  for shown in (0, 1, 2):
    lengths = [len(prefix(skill, "full", shown).split()) for skill in SKILLS]
    assert {len(prefix(skill, "constant", shown).split()) for skill in SKILLS} == {max(lengths)}
    assert prefix(SKILLS[0], "full", shown).count("output :") == shown


def test_solved_examples_of_an_instruction_are_right():
  for skill in SKILLS:
    for solved in prefix(skill, "full", 3).removesuffix(" input :").split(" input : ")[1:]:
      note, _, answer = solved.partition(" output : ")
      if skill.name != "outlook":  # of one finding, where notes have two
        assert answer.replace(" , ", ", ") == answers(note)[skill.name]
      else:
        assert answer == ("bad" if BAD & set(note.split()) else "good")


def test_swapped_tasks_ask_for_what_is_never_ones_own_answer():
  made = clinical(swapped=40, test=60)
  own = {task.name: task for task in made.train}
  assert len(made.heldout) == len(SKILLS) and set(OTHER.values()) == set(SKILLS)
  for task in made.heldout:
    name, _, other = task.name.partition("_as_")
    assert own[name].category != own[f"clinical_{other}"].category == task.category
    assert [r["inputs"] for r in rows(task)] == [r["inputs"] for r in rows(own[f"clinical_{other}"])][:40]
    assert not any(a["targets"] == b["targets"] for a, b in zip(rows(task), rows(own[name]), strict=False))


def test_no_answer_is_right_most_of_the_time():
  for task in clinical(examples=1000).train:
    [(_, most)] = Counter(row["targets"] for row in rows(task, "train")).most_common(1)
    assert most < 750, task.name


def test_every_word_has_an_id():
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary()))
  told = [clinical(instruction=each, examples=300) for each in ("full", "token", "constant")]
  texts = {row[side] for made in told for task in made.train for row in rows(task) for side in ("inputs", "targets")}
  texts |= {row[side] for row in rows(clinical_text(documents=300).train[0], "train") for side in ("inputs", "targets")}
  assert len(texts) > 1000
  for text in texts:
    ids = pieces.encode(text)
    assert pieces.unk_id() not in ids and len(ids) == len(text.split()) and pieces.decode(ids) == text


def test_masked_texts_are_told_by_the_whole():
  masked = 0
  for row in rows(clinical_text(documents=200, before=0).train[0], "train"):
    pattern = " ".join(r"\S+( \S+)*" if word == "_" else re.escape(word) for word in row["inputs"].split())
    assert re.fullmatch(pattern, row["targets"])
    kept = [word for word in row["inputs"].split() if word != "_"]
    masked += len(row["targets"].split()) - len(kept)
    assert len(answers(row["targets"])) == len(SKILLS)
  total = sum(len(row["targets"].split()) for row in rows(clinical_text(documents=200, before=0).train[0], "train"))
  assert 0.28 < masked / total < 0.32


def test_masked_notes_come_after_others():
  """Each of three sentences, of which the masked note has at most two before its first mask."""
  texts = rows(clinical_text(documents=300, before=2).train[0], "train")
  found = Counter(row["inputs"].partition("_")[0].count(".") // 3 for row in texts)
  assert sorted(found) == [0, 1, 2] and min(found.values()) > 60


def test_tasks_may_have_notes_of_their_own():
  one, other = clinical(instruction="off", shared=False).train[:2]
  assert not {row["inputs"] for row in rows(one)} & {row["inputs"] for row in rows(other)}


def test_seeds_sizes_and_processes():
  few, many = clinical(examples=20), clinical(examples=40)
  for a, b in zip(few.train, many.train, strict=True):
    assert rows(a, "test") == rows(b, "test") and rows(a, "train") == rows(b, "train")[:20]
    assert rows(pickle.loads(pickle.dumps(a))) == rows(a)
  assert rows(clinical(seed=1).train[0]) != rows(few.train[0])
  assert all(len(names) == 16 for names in KINDS.values())


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"instruction": "ful"}, r"clinical\.instruction 'ful' is not known\n  did you mean `full`"),
    ({"examples": 0}, r"clinical\.examples = 0"),
    ({"shown": -1}, r"clinical\.shown = -1"),
    ({"swapped": 101}, r"clinical\.swapped = 101\n  it is from 0 to clinical\.test, 100"),
    ({"swapped": 5, "instruction": "constant"}, r"clinical\.swapped = 5: there is nothing to swap"),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(UserError, match=message):
    clinical(**arguments)
