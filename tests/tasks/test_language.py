"""The language family: what it says is parsed back, and every answer is computed again from what was parsed."""

import itertools
import pickle
import re
from collections import Counter

import pytest

from mtx.errors import UserError
from mtx.tasks.language import language, language_text
from mtx.tasks.language_grammar import (
  COLOURS,
  KINDS,
  LEMMAS,
  NOUNS,
  OPPOSITES,
  QUALITIES,
  VALENCE,
  VERBS,
  names,
  speak,
)
from mtx.tasks.language_skills import CATEGORIES, SKILLS
from mtx.tasks.task import Reading

KIND = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
SPOKEN = ("en", "qaa", "qab", "qac", "qad", "qae")


def rows(task, split="test"):
  return list(task.rows(split, Reading()))


def plain(text, tongue):
  """Text of a script of its own, in the common one."""
  back = {shown: common for common, shown in tongue.script.items()}
  return "".join(back.get(character, character) for character in text)


def forms(tongue):
  """Every form -> (part of speech, lemma, whether it is of one)."""
  found = {}
  for kind, lemmas, form in (
    ("noun", NOUNS, tongue.noun), ("quality", QUALITIES, tongue.quality), ("verb", VERBS, tongue.verb)
  ):  # fmt: skip
    for lemma in lemmas:
      for count in (2, 1):
        found[form(lemma, count)] = (kind, lemma, count == 1)
  return found


def parse(tokens, tongue, agree=True):
  """A sentence as a flat dict, from its words alone; fails where order or agreement is wrong."""
  table = forms(tongue)
  places, i = [], 0
  while i < len(tokens):
    if tokens[i].isdigit():
      count, pair = int(tokens[i]), [table[token] for token in tokens[i + 1 : i + 3]]
      assert [kind for kind, *_ in pair] == (["quality", "noun"] if tongue.quality_first else ["noun", "quality"])
      by_kind = {kind: (lemma, one) for kind, lemma, one in pair}
      assert by_kind["noun"][1] == (count == 1)
      assert by_kind["quality"][1] == (count == 1) or not tongue.quality_ending
      places.append((count, by_kind["quality"][0], by_kind["noun"][0]))
      i += 3
    else:
      kind, lemma, one = table[tokens[i]]
      assert kind == "verb"
      places.append((lemma, one))
      i += 1
  parts = dict(zip(tongue.order, places, strict=True))
  verb, one = parts["V"]
  assert one == (parts["S"][0] == 1)
  return {"actor_number": parts["S"][0], "actor_quality": parts["S"][1], "actor": parts["S"][2], "verb": verb,
          "target_number": parts["O"][0], "target_quality": parts["O"][1], "target": parts["O"][2]}  # fmt: skip


def sentences(text, tongue):
  assert text.endswith(" .")
  return [parse(sentence.split(), tongue) for sentence in text[:-2].split(" . ")]


def items(text):
  return text.split(" , ")


def recomputed(skill, shown, tongue, other):
  """The answer to an input, as (lemmas or parsed sentences), by means of its own."""
  text, _, query = shown.partition(" ? ")
  found = sentences(text, tongue) if text.endswith(".") else None
  lemma = {form: lemma for lemma, form in tongue.words.items()}
  what = skill.name.split("_", 1)[1]
  surface = [("actor", "target") if tongue.order.index("S") < tongue.order.index("O") else ("target", "actor")]
  nps = [(s[role], s[role + "_number"], s[role + "_quality"]) for s in found or [] for role in surface[0]]
  if skill.category == "answering":
    asked, given = what.split("_of_", 1)
    [hit] = [s for s in found if str(s[given]) == lemma.get(query, query)]
    return str(hit[asked])
  if skill.category == "labelling":
    if what == "contains":
      return "yes" if lemma[query] in [noun for noun, *_ in nps] else "no"
    [s] = found
    return {
      "actor_kind": lambda: KIND[s["actor"]],
      "target_kind": lambda: KIND[s["target"]],
      "verb_value": lambda: VALENCE[s["verb"]],
      "quality_value": lambda: VALENCE[s["actor_quality"]],
      "same_kind": lambda: "yes" if KIND[s["actor"]] == KIND[s["target"]] else "no",
      "more": lambda: max(("actor", "target"), key=lambda role: s[role + "_number"]),
      "parity": lambda: ["even", "odd"][s["actor_number"] % 2],
      "actor_colour": lambda: "yes" if s["actor_quality"] in COLOURS else "no",
      "actor_many": lambda: "one" if s["actor_number"] == 1 else "many",
    }[what]()
  if skill.category == "extraction":
    return {
      "actors": lambda: [s["actor"] for s in found],
      "targets": lambda: [s["target"] for s in found],
      "verbs": lambda: [s["verb"] for s in found],
      "qualities": lambda: [quality for _, _, quality in nps],
      "numbers": lambda: [str(number) for _, number, _ in nps],
      "animals": lambda: [noun for noun, *_ in nps if KIND[noun] == "animal"],
      "persons": lambda: [noun for noun, *_ in nps if KIND[noun] == "person"],
      "colours": lambda: [quality for *_, quality in nps if quality in COLOURS],
      "plurals": lambda: [noun for noun, number, _ in nps if number > 1],
      "actor_phrases": lambda: [s["actor"] for s in found],
      "target_phrases": lambda: [s["target"] for s in found],
      "speech": lambda: ["number" if t.isdigit() else forms(tongue)[t][0] for t in text.split() if t != "."],
    }[what]()
  numbers = [number for _, number, _ in nps]
  if skill.category == "counting":
    return str({
      "sentences": text.count("."),
      "plurals": sum(n > 1 for n in numbers),
      **{kind + "s": sum(KIND[noun] == kind for noun, *_ in nps) for kind in KINDS},
      "colours": sum(quality in COLOURS for *_, quality in nps),
      "sum_actors": sum(s["actor_number"] for s in found),
      "sum_targets": sum(s["target_number"] for s in found),
      "largest": max(numbers),
      "smallest": min(numbers),
      "difference": max(numbers) - min(numbers),
    }[what])  # fmt: skip
  if skill.category == "ordering":
    by = lambda key, chosen=None: [s if chosen is None else s[chosen] for s in sorted(found, key=lambda s: s[key])]
    return {
      "numbers_up": lambda: [str(n) for n in sorted(numbers)],
      "numbers_down": lambda: [str(n) for n in sorted(numbers)[::-1]],
      "sentences_reversed": lambda: list(reversed(found)),
      "sentences_rotated": lambda: [*found[1:], found[0]],
      "sentences_swapped": lambda: [found[-1], *found[1:-1], found[0]],
      "sentences_by_actor_number": lambda: by("actor_number"),
      "sentences_by_target_number": lambda: by("target_number"),
      "actors_by_number": lambda: by("actor_number", "actor"),
      "targets_by_number": lambda: by("target_number", "target"),
      "nouns_by_number": lambda: [noun for _, noun in sorted((number, noun) for noun, number, _ in nps)],
      "words_reversed": lambda: " ".join(reversed(text.removesuffix(" .").split())),
      "words_rotated": lambda: re.sub(r"(.*) (\S+) \.", r"\2 \1", text),
    }[what]()
  if skill.category == "rewriting":
    if what.startswith("drop"):
      words = {form for form, (kind, *_) in forms(tongue).items() if kind == "quality"}
      if what == "drop_actor_quality":
        words = {tongue.quality(s["actor_quality"], s["actor_number"]) for s in found}
      return " ".join(token for token in text.split() if token not in words)
    change = {
      "swap_actor_and_target": lambda s: {
        k.replace("actor", "*").replace("target", "actor").replace("*", "target"): v for k, v in s.items()
      },
      "swap_numbers": lambda s: {"actor_number": s["target_number"], "target_number": s["actor_number"]},
      "swap_qualities": lambda s: {"actor_quality": s["target_quality"], "target_quality": s["actor_quality"]},
      "actor_to_one": lambda s: {"actor_number": 1},
      "all_to_one": lambda s: {"actor_number": 1, "target_number": 1},
      "opposite_verb": lambda s: {"verb": OPPOSITES[s["verb"]]},
      "opposite_quality": lambda s: {"actor_quality": OPPOSITES[s["actor_quality"]]},
      "verb_to_given": lambda s: {"verb": lemma[query]},
      "actor_to_given": lambda s: {"actor": lemma[query]},
      "target_to_given": lambda s: {"target": lemma[query]},
    }[what]
    return [{**s, **change(s)} for s in found]
  if skill.category == "translation":
    what = what.split("_")[0]
    if what in ("sentence", "text"):
      return found
    if what == "words":
      table = {form: lemma for form, (_, lemma, _) in forms(tongue).items()}
      return " ".join(table.get(token, token) for token in text.split()[:-1])
    return [s[what.removesuffix("s")] for s in found]
  raise AssertionError(skill.name)


def understood(skill, target, tongue, wanted):
  """A written answer in the form that `recomputed` gives."""
  lemma = {form: lemma for lemma, form in tongue.words.items()}
  if isinstance(wanted, list) and wanted and isinstance(wanted[0], dict):
    return sentences(target, tongue)
  if isinstance(wanted, list):
    if "phrases" in skill.name:
      return [next(m for t in item.split() for k, m, _ in [forms(tongue).get(t, ("", "", 0))] if k == "noun")
              for item in items(target)]  # fmt: skip
    if skill.name == "list_plurals":
      assert all(not forms(tongue)[item][2] for item in items(target))
      return [forms(tongue)[item][1] for item in items(target)]
    return [lemma.get(item, item) for item in items(target)]
  if skill.name.startswith("translate_words"):
    return " ".join(lemma.get(token, token) for token in target.split())
  if skill.category in ("ordering", "rewriting"):
    return target
  return lemma.get(target, target)


@pytest.mark.parametrize("anchors", [True, False])
@pytest.mark.parametrize("name", SPOKEN)
def test_what_is_said_parses_back_and_every_answer_is_recomputed(name, anchors):
  tasks = language(tasks=[c for c in CATEGORIES if c != "composing"], heldout_languages=(), anchors=anchors, test=6)
  tongue, english = speak(name, 0, anchors), speak("en", 0, anchors)
  checked = Counter()
  for task in (*tasks.train, *tasks.heldout):
    if not task.name.endswith(f"_{name}"):
      continue
    skill = SKILLS[task.name.removeprefix("language_").rsplit("_", 1)[0]]
    if skill.name in ("label_agreement", "label_word_order"):
      continue
    source, writer = tongue, {"say": tongue, "ask": english, "other": english}[skill.writes]
    if skill.name.endswith("from_english"):
      source = english
    for row in rows(task):
      _, _, shown = row["inputs"].partition(" : ")
      shown = plain(shown, source)
      wanted = recomputed(skill, shown, source, writer)
      assert understood(skill, plain(row["targets"], writer), writer, wanted) == wanted, row
      checked[skill.category] += 1
  assert set(checked) == set(CATEGORIES) - {"composing"} - ({"translation"} if name == "en" else set())
  assert min(checked.values()) >= 60


@pytest.mark.parametrize("name", SPOKEN)
def test_compositions(name):
  tongue, table = speak(name, 0, True), forms(speak(name, 0, True))
  lemma = {form: lemma for lemma, form in tongue.words.items()}
  tasks = language(tasks=["composing"], heldout_categories=(), heldout_languages=(), test=10)
  for task in tasks.train:
    if not task.name.endswith(f"_{name}"):
      continue
    skill = task.name.removeprefix("language_compose_").rsplit("_", 1)[0]
    for row in rows(task):
      shown, target = row["inputs"].partition(" : ")[2], row["targets"]
      if "record" in skill:
        record, sentence = (target, shown) if skill == "record_from_sentence" else (shown, target)
        [parsed] = sentences(sentence, tongue)
        said, role = {}, ""
        for pair in record.split(" ; "):
          key, value = (lemma.get(token, token) for token in pair.split())
          if key in ("actor", "verb", "target"):
            role, said[key] = key, value
          else:
            said[f"{role}_{key}"] = value
        assert said == {key: str(value) for key, value in parsed.items()}
      elif skill.startswith("restore"):
        gapped, word = shown.split(" ? ")
        [restored] = [token for gap, token in zip(gapped.split(), target.split(), strict=True) if gap == "_"]
        assert table[restored][1] == lemma[word] and sentences(target, tongue)
      elif skill.startswith("cross"):
        first, last = sentences(shown, tongue)
        part = skill.removeprefix("cross_")
        keys = {key for key in first if key.startswith(part)}
        assert sentences(target, tongue) == [{**first, **{key: last[key] for key in keys}}]
      elif skill == "sentence_from_phrases":
        actor, verb, noun = items(shown)
        [parsed] = sentences(target, tongue)
        assert parsed["verb"] == lemma[verb] and actor in target and noun in target
        assert table[actor.split()[1 + tongue.quality_first]][1] == parsed["actor"]
      else:
        for parts, phrase in zip(items(shown), items(target), strict=True):
          found = [table.get(token, ("", token))[1] for token in phrase.split()]
          assert sorted(lemma.get(part, part) for part in parts.split(" ; ")) == sorted(found)


@pytest.mark.parametrize("name", SPOKEN)
def test_mistakes_are_mistakes(name):
  tongue = speak(name, 0, True)
  tasks = language(tasks=["label_agreement", "label_word_order"], heldout_languages=(), test=60)
  for task in tasks.train:
    if task.name.endswith(f"_{name}"):
      for row in rows(task):
        try:
          right = bool(sentences(row["inputs"].partition(" : ")[2], tongue))
        except (AssertionError, KeyError, ValueError):
          right = False
        assert row["targets"] == ("right" if right else "wrong"), row
        assert row["options"] == ["right", "wrong"]


def test_there_and_back_is_the_same():
  """What a task translates into English, translated word by meaning again, is what it was given."""
  tongue, english = speak("qab", 0, True), speak("en", 0, True)
  tasks = {task.name: task for task in language(heldout_languages=()).train}
  for row in rows(tasks["language_translate_text_to_english_qab"]):
    given = row["inputs"].partition(" : ")[2]
    assert sentences(row["targets"], english) == sentences(given, tongue)


def test_labels_are_evenly_likely():
  for task in language(tasks=["labelling"], languages=1, heldout_languages=(), test=200).train:
    found = rows(task)
    counts, options = Counter(row["targets"] for row in found), found[0]["options"]
    assert set(counts) == set(options)
    assert max(abs(n / 200 - 1 / len(options)) for n in counts.values()) < 0.13, task.name


@pytest.mark.parametrize("anchors", [True, False])
def test_options_are_the_words_that_could_be_meant(anchors):
  """Of an answer all words of its kind in the text, but the one that is given; of a count every number it could be."""
  tasks = language(tasks=["answering", "counting"], heldout_languages=(), languages=3, anchors=anchors, test=20)
  for task in tasks.train:
    tongue = speak(task.name.rsplit("_", 1)[1], 0, anchors)
    table = {form: (kind, lemma) for form, (kind, lemma, _) in forms(tongue).items()}
    for row in rows(task):
      options = [plain(option, tongue) for option in row["options"]]
      assert row["targets"] in row["options"] and len(set(options)) == len(options)
      if task.category == "counting":
        assert options == [str(number) for number in range(31 if "_sum_" in task.name else 10)]
        continue
      text, _, query = plain(row["inputs"], tongue).partition(" : ")[2].partition(" ? ")
      asked = task.name.split("_")[2:-1]
      kind = "number" if "number" in asked[: asked.index("of")] else table[plain(row["targets"], tongue)][0]
      words = text.split()
      there = {w for w in words if w.isdigit()} if kind == "number" else {
        tongue.word(table[w][1]) for w in words if w in table and table[w][0] == kind
      }  # fmt: skip
      assert set(options) == there - {query} and len(options) >= 2


def test_languages_share_anchors_or_nothing():
  for anchors, common in ((True, set("0123456789 .")), (False, {" "})):
    texts = [
      " ".join(row["targets"] for row in rows(task, "train"))
      for task in language_text(anchors=anchors, documents=60).train
    ]
    for one, other in itertools.combinations(texts, 2):
      shared = {word for word in one.split()} & {word for word in other.split()}
      assert shared == (set("123456789.") if anchors else set())
      if not anchors:
        assert set(one) & set(other) == common


def test_every_word_and_ending_tells_what_it_is():
  for name in names(14):
    tongue = speak(name, 3, True)
    assert len(set(tongue.words.values())) == len(LEMMAS)
    if name != "en":  # sentences are told apart by form alone
      table = Counter(f for lemma in LEMMAS for f in {tongue.words[lemma], tongue.words[lemma] + tongue.plural})
      assert max(table.values()) == 1
    for skill in SKILLS.values():
      for instruction in skill.instructions:
        assert set(instruction.replace(",", "").split()) <= set(LEMMAS), skill.name


def test_orders_differ_and_native_prompts_put_the_verb_where_it_belongs():
  assert len({speak(name, 0, True).order for name in SPOKEN}) == 5  # English and another are SVO
  qaa, qab = speak("qaa", 0, True), speak("qab", 0, True)
  assert (qaa.order, qab.order) == ("SOV", "VSO")
  assert qab.instruction("read the text").split() == [qab.words[w] for w in ("read", "the", "text")]
  assert qaa.instruction("read the text").split() == [qaa.words[w] for w in ("the", "text", "read")]


def test_prompts_are_english_native_or_absent():
  kinds = {kind: language(prompts=kind, languages=2, heldout_languages=()) for kind in ("english", "native", "none")}
  found = {kind: {task.name: task for task in tasks.train} for kind, tasks in kinds.items()}
  name = "language_label_actor_kind_qaa"
  english, native, none = (rows(found[kind][name]) for kind in kinds)
  qaa = speak("qaa", 0, True)
  for a, b, c in zip(english, native, none, strict=True):
    assert a["inputs"].endswith(" : " + c["inputs"]) and b["inputs"].endswith(" : " + c["inputs"])
    assert a["targets"] in KINDS and b["targets"] == qaa.words[a["targets"]] == c["targets"]
    instruction, number = a["inputs"].partition(" : ")[0], int(re.search(r"-p(\d)-", a["id"])[1])
    assert instruction == SKILLS["label_actor_kind"].instructions[number]
    assert b["inputs"].partition(" : ")[0] == qaa.instruction(instruction)
  assert {re.search(r"-p(\d)-", row["id"])[1] for row in english} == set("0123")
  mixed = language(prompts="english", heldout_prompts="native", heldout_paraphrases=(2,), languages=2).heldout
  shown = next(task for task in mixed if task.name == name)
  assert all("-p2-" in row["id"] and row["targets"] in qaa.words.values() for row in rows(shown))


def test_what_is_held_out():
  tasks = language()
  train, heldout = ({task.name for task in part} for part in (tasks.train, tasks.heldout))
  assert not train & heldout
  assert len(train | heldout) == 96 * 6 - 12
  assert not any(name.endswith("_qae") or "_compose_" in name or "_label_contains_" in name for name in train)
  assert all(task.splits == {"test": 32, "validation": 8, "train": 100} for task in tasks.train)
  assert all(task.splits == {"test": 32} for task in tasks.heldout)
  assert language(shots=5).heldout[0].splits == {"test": 32, "train": 5}
  assert {task.category for task in tasks.train} == set(CATEGORIES) - {"composing"}
  english_only = language(heldout_languages=SPOKEN[1:])
  assert {task.name.rsplit("_", 1)[1] for task in english_only.train} == {"en"}
  assert not any("translate" in task.name for task in english_only.train)
  assert not any("translate" in task.name for task in language(heldout_languages=("en",)).train)
  fewer = language(train_tasks=14, zipf=1.0, heldout_languages=(), languages=2)
  sizes = {task.name: task.splits["train"] for task in fewer.train}
  assert Counter(task.category for task in fewer.train if task.name.endswith("_qaa")) == dict.fromkeys(
    set(CATEGORIES) - {"composing"}, 2
  )
  assert sorted({*sizes.values()}, reverse=True)[:4] == [100, 50, 33, 25]
  assert [t.name for t in fewer.heldout] == [t.name for t in language(heldout_languages=(), languages=2).heldout]


def test_nothing_of_the_test_splits_is_learned_from():
  """Over all tasks and languages, and in the text: clauses of test inputs are met nowhere else."""
  met: dict[str, set] = {"test": set(), "train": set(), "validation": set()}
  answering = language(
    tasks=["answering", "counting", "translation"], heldout_languages=(), examples=10, test=16, languages=2
  )
  for task in answering.train:
    for split, seen in met.items():
      for row in rows(task, split):
        shown = row["inputs"].partition(" : ")[2].partition(" ? ")[0]
        source = speak("en" if "from_english" in task.name else task.name.rsplit("_", 1)[1], 0, True)
        seen.update(tuple(s.values()) for s in sentences(shown, source))
  for task in language_text(languages=2, documents=100).train:
    for row in rows(task, "train"):
      met["train"].update(tuple(s.values()) for s in sentences(row["targets"], speak(task.language, 0, True)))
  assert len(met["test"]) > 1000 < len(met["train"])
  assert not met["test"] & (met["train"] | met["validation"])


def test_rows_are_the_same_in_every_order_and_process():
  tasks = language(languages=3)
  for task in (tasks.train[0], tasks.train[-1], tasks.heldout[0]):
    again = pickle.loads(pickle.dumps(task))
    for split, size in task.splits.items():
      found = rows(task, split)
      assert found == rows(again, split) and len(found) == size
      assert len({row["id"] for row in found}) == len({row["inputs"] for row in found}) == size
  more = {task.name: task for task in language(languages=3, examples=300).train}
  task = tasks.train[0]
  assert rows(more[task.name], "train")[:100] == rows(task, "train") and rows(more[task.name]) == rows(task)
  other = {task.name: task for task in language(languages=3, seed=1).train}[task.name]
  assert rows(other) != rows(task)


def test_text_has_a_rare_language_and_says_what_the_world_is_like():
  tasks = language_text(languages=3, documents=300, shares={"qab": 0.01})
  assert [task.splits["train"] for task in tasks.train] == [300, 300, 3]
  assert {task.category for task in tasks.train} == {"text"} and not tasks.heldout
  found = rows(tasks.train[1], "train")
  assert all(row["inputs"] == "" and len(sentences(row["targets"], speak("qaa", 0, True))) == 4 for row in found)
  texts = [sentences(row["targets"], speak("qaa", 0, True)) for row in found]
  goes_on = [b["actor"] == a["target"] for text in texts for a, b in itertools.pairwise(text)]
  assert 0.4 < sum(goes_on) / len(goes_on) < 0.65
  by_noun = Counter((s["actor"], s["verb"]) for text in texts for s in text)
  likely = sum(n for (noun, _), n in by_noun.items() if noun == "dog" and n >= 3)
  assert likely / sum(n for (noun, _), n in by_noun.items() if noun == "dog") > 0.5


def test_text_is_parted_by_objective():
  """Ids put together again are the document; noise depends on the seed and the document alone."""
  words = sorted({word for task in language_text(documents=20, languages=2).train for row in rows(task, "train")
                  for word in row["targets"].split()})  # fmt: skip
  reading = Reading(lambda text: [words.index(word) for word in text.split()], 1000, 8)
  plain_text = language_text(documents=20, languages=2).train[1]
  whole = [reading.encode(row["targets"]) for row in rows(plain_text, "train")]
  prefix, masked = (
    list(language_text(documents=20, languages=2, objective=objective).train[1].rows("train", reading))
    for objective in ("prefix_lm", "span_corruption")
  )
  assert [row["inputs"] + row["targets"] for row in prefix] == whole
  assert len({len(row["inputs"]) for row in prefix}) > 3 and all(row["inputs"] and row["targets"] for row in prefix)
  for row, ids in zip(masked, whole, strict=True):
    spans: dict[int, list[int]] = {}
    for token in row["targets"]:
      if token >= 992:
        spans[token] = []
      else:
        spans[list(spans)[-1]].append(token)
    filled = [each for token in row["inputs"] for each in spans.get(token, [token])]
    assert filled == ids and 999 in row["inputs"] and len(row["targets"]) < len(ids) / 2
  again = language_text(documents=5, languages=2, objective="span_corruption").train[1].rows("train", reading)
  assert list(again) == masked[:5]


def test_scopes_with_names_of_their_own():
  english, native = (language(prompts=kind, name=kind, languages=2) for kind in ("english", "native"))
  assert native.name == "native" and {task.name.split("_")[0] for task in native.heldout} == {"native"}
  assert rows(native.heldout[0])[0]["id"].startswith(native.heldout[0].name)
  assert not {task.name for task in native.heldout} & {task.name for task in english.heldout}


def test_the_vocabulary_hears_every_language_whole():
  said = set(" ".join(language(languages=3).texts()).split())
  for name in names(3):
    assert set(speak(name, 0, True).words.values()) <= said


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"languages": 40}, r"40 languages are asked for\n  there are 1 to 14"),
    ({"heldout_languages": ["qaz"]}, r"language\.heldout_languages: 'qaz' is not known\n  did you mean `qae`"),
    ({"heldout_categories": ["orderin"]}, r"language\.heldout_categories: 'orderin' .*\n  did you mean `ordering`"),
    ({"heldout_tasks": ["count_tool"]}, r"language\.heldout_tasks: 'count_tool' .*\n  did you mean `count_tools`"),
    ({"tasks": ["label_parit"]}, r"language\.tasks: 'label_parit' .*\n  did you mean `label_parity`"),
    ({"prompts": "nativ"}, r"language\.prompts: 'nativ' .*\n  did you mean `native`"),
    ({"heldout_prompts": "nativ"}, r"language\.heldout_prompts: 'nativ'"),
    ({"paraphrases": (4,)}, r"language\.paraphrases is \[4\]\n  numbers from 0 to 3"),
    ({"paraphrases": ()}, r"language\.paraphrases is \[\]"),
    ({"test": -1}, r"-1 examples of split 'test'"),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(UserError, match=message):
    language(**arguments)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"shares": {"qaz": 0.1}}, r"language_text\.shares: 'qaz' is not known"),
    ({"shares": {"qaa": 3}}, r"language_text\.shares\['qaa'\] is 3"),
    ({"sentences": 0}, r"language_text\.sentences is 0"),
    ({"objective": "prefix"}, r"language_text\.objective: 'prefix' is not known\n  did you mean `prefix_lm`"),
  ],
)
def test_bad_arguments_of_text_are_named(arguments, message):
  with pytest.raises(UserError, match=message):
    language_text(**arguments)


def test_an_unknown_language_is_named():
  with pytest.raises(UserError, match=r"language 'xx' is not known\n  valid choices: en, qaa"):
    speak("xx", 0, True)
