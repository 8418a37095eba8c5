import functools
import json
import logging
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import gin
import numpy as np
import pytest

from mtx.errors import UserError
from mtx.tasks.shots import bm25, fewshot_prompts, shots, shows_examples, tokens
from mtx.tasks.task import Collection, Reading, TextTask

POOL = [
  {"inputs": f"question {n} about {thing}", "targets": answer, "options": ["yes", "no", "maybe"]}
  for n, (thing, answer) in enumerate(
    [("cats", "yes"), ("dogs", "no"), ("cats and dogs", "yes"), ("birds", "maybe")] * 5 + [("fish", "yes")] * 10
  )
]
TEST = [{"inputs": f"is this about {thing} ?", "targets": "yes"} for thing in ("cats", "birds", "stones")] * 4


def _rows(split, reading, *, data):
  yield from data[split]


def task_of(data: dict, name: str = "ask") -> TextTask:
  rows = functools.partial(_rows, data=data)
  return TextTask(name, "asking", rows, {split: len(each) for split, each in data.items()}, ("exact_match",))


@pytest.fixture
def task():
  return task_of({"train": POOL, "validation": TEST[:2], "test": TEST})


def prompts(task, split="test", reading=None, **settings) -> list[str]:
  return [row["inputs"] for row in shots(task, **settings).rows(split, reading or Reading())]


def shown(prompt: str) -> list[int]:
  """Numbers of the pool's rows in a prompt, in its order."""
  return [int(part.split()[1]) for part in prompt.split("\n\n")[:-1]]


@pytest.mark.parametrize("selector", ["random", "fixed", "bm25", "balanced"])
def test_a_prompt_is_k_solved_examples_and_the_instance(task, selector):
  few = shots(task, 3, selector)
  assert (few.name, few.category, few.metrics) == (f"ask_3shot_{selector}", "asking", ("exact_match",))
  assert shows_examples(few.name) and not shows_examples(task.name)
  assert dict(few.splits) == {"validation": 2, "test": 12}
  rows = list(few.rows("test", Reading()))
  assert rows == list(few.rows("test", Reading()))
  assert [{**row, "inputs": None} for row in rows] == [{**row, "inputs": None} for row in TEST]
  for row, asked in zip(rows, TEST, strict=True):
    *examples, last = row["inputs"].split("\n\n")
    assert last == asked["inputs"]
    assert len(set(examples)) == 3
    assert all(example in [f"{p['inputs']}\n{p['targets']}" for p in POOL] for example in examples)


def test_random_draws_anew_for_every_instance_and_seed(task):
  many = replace(task, rows=functools.partial(_rows, data={"train": POOL, "test": TEST * 200}))
  first = prompts(many, k=2)
  drawn = Counter(number for prompt in first for number in shown(prompt))
  expected = 2 * len(first) / len(POOL)
  chi2 = sum((drawn[n] - expected) ** 2 / expected for n in range(len(POOL)))
  assert chi2 < len(POOL) + 4 * (2 * len(POOL)) ** 0.5
  assert len(set(map(tuple, map(shown, first)))) > 300
  assert sum(a == b for a, b in zip(first, prompts(many, k=2, seed=1), strict=True)) < 30
  identified = [{**row, "id": f"x{n}"} for n, row in enumerate(TEST)]
  turned = task_of({"train": POOL, "test": identified[::-1]})
  assert prompts(turned, k=4) == prompts(task_of({"train": POOL, "test": identified}), k=4)[::-1]  # ids decide


def test_fixed_is_the_same_for_all(task):
  assert len({tuple(shown(prompt)) for prompt in prompts(task, k=4, selector="fixed")}) == 1
  assert shown(prompts(task, k=4, selector="fixed")[0]) != shown(prompts(task, k=4, selector="fixed", seed=5)[0])


def test_bm25_puts_the_nearest_last(task):
  found = prompts(task, k=3, selector="bm25")
  # Only "dogs" and "and" of question 2 add nothing to "cats"; shorter documents win, then earlier ones.
  assert shown(found[0]) == [8, 4, 0]
  assert shown(found[1]) == [11, 7, 3]


def test_balanced_has_every_class_as_often(task):
  for k, counts in ((3, [1, 1, 1]), (6, [2, 2, 2]), (7, [2, 2, 3])):
    for prompt in prompts(task, k=k, selector="balanced"):
      assert sorted(Counter(POOL[n]["targets"] for n in shown(prompt)).values()) == counts
  # A class that runs out leaves its turns to the others: 5 "no", 5 "maybe" and 20 "yes".
  for prompt in prompts(task, k=20, selector="balanced"):
    assert Counter(POOL[n]["targets"] for n in shown(prompt)) == {"maybe": 5, "no": 5, "yes": 10}
  last = Counter(POOL[shown(prompt)[-1]]["targets"] for prompt in prompts(task, k=3, selector="balanced"))
  assert len(last) > 1  # the order of the classes is not always the same


def test_balanced_counts_positions_where_options_are_a_rows_own():
  pool = [{"inputs": f"q {n}", "targets": f"a{n}", "options": [f"a{n}", f"b{n}"][:: 1 - 2 * (n > 5)]} for n in range(8)]
  few = task_of({"train": pool, "test": TEST})
  for prompt in prompts(few, k=4, selector="balanced"):
    assert sum(n > 5 for n in shown(prompt)) == 2


@pytest.mark.parametrize("selector", ["random", "fixed", "bm25", "balanced"])
def test_the_instance_itself_is_never_shown(selector):
  pool = [{"inputs": f"question {n}", "targets": str(n)} for n in range(6)]
  asked = [{"inputs": f" question {n}\n", "targets": str(n)} for n in range(6)]
  few = task_of({"train": pool, "test": asked})
  for n, prompt in enumerate(prompts(few, k=5, selector=selector)):
    assert sorted([n, *shown(prompt)]) == list(range(6))


def test_what_does_not_fit_is_dropped_from_the_far_end_and_counted(task, caplog):
  whole = prompts(task, k=6, selector="bm25")
  limit = sorted(len(prompt.split()) for prompt in whole)[len(whole) // 2]
  with caplog.at_level(logging.WARNING):
    bounded = prompts(task, k=6, selector="bm25", inputs_length=limit)
  dropped = 0
  for before, after in zip(whole, bounded, strict=True):
    assert before.endswith(after) and len(after.split()) + 1 <= limit
    if after != before:
      dropped += 1
      one_more = before.split("\n\n")[-len(shown(after)) - 2 :]
      assert len("\n\n".join(one_more).split()) + 1 > limit
  assert dropped > 0
  assert caplog.messages == [
    f"ask_6shot_bm25 test: {dropped} of 12 prompts have fewer than 6 examples, to keep to {limit} tokens"
  ]


def test_an_instance_too_long_by_itself_stays_whole(task, caplog):
  with caplog.at_level(logging.WARNING):
    assert prompts(task, k=2, inputs_length=3) == [row["inputs"] for row in TEST]
  assert "12 of 12 prompts have fewer than 2 examples" in caplog.text


def test_nothing_is_logged_when_all_fit(task, caplog):
  with caplog.at_level(logging.WARNING):
    prompts(task, k=2, inputs_length=500)
  assert not caplog.messages


def test_fewer_examples_than_k_are_counted_when_the_pool_holds_the_instance(caplog):
  pool = [{"inputs": f"question {n}", "targets": str(n)} for n in range(3)]
  with caplog.at_level(logging.WARNING):
    prompts(task_of({"train": pool, "test": [*pool[:1], *TEST]}), k=3)
  assert caplog.messages == ["ask_3shot_random test: 1 of 13 prompts have fewer than 3 examples"]


def test_templates(task):
  few = {"k": 1, "selector": "bm25", "demonstration": "Q {{ {inputs}\nA {targets}", "query": "Q {inputs} }}\nA"}
  braces = task_of({"train": [{"inputs": "{x} cats", "targets": "{0}"}], "test": TEST})
  assert prompts(braces, separator=" | ", **few)[0] == "Q { {x} cats\nA {0} | Q is this about cats ? }\nA"


IDENTIFIERS = [
  ("readHTTPLine_2 = parseXML(x1);", "read http line 2 = parse xml ( x 1 ) ;"),
  ("snake_case camelCase SHOUT", "snake case camel case shout"),
  ("Don't, naïve café-été!", "don ' t , naïve café - été !"),
  ("ÉcoleNormale", "école normale"),
  ("日本語のtext", "日 本 語 の text"),
  ("తెలుగు భాష", "తెలుగు భాష"),  # vowel signs stay with their letters
  ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), IDENTIFIERS)
def test_tokens(text, expected):
  assert tokens(text) == expected.split()


def reference(documents: list[str], query: str) -> np.ndarray:
  """The sheet's formula, term by term, float64; negative idf floored at 0."""
  corpus = [Counter(tokens(document)) for document in documents]
  average = sum(c.total() for c in corpus) / len(corpus)
  scores = np.zeros(len(corpus), np.float64)
  for term in tokens(query):
    n = sum(term in c for c in corpus)
    idf = max(0.0, math.log((len(corpus) - n + 0.5) / (n + 0.5))) if n else 0.0
    for i, c in enumerate(corpus):
      scores[i] += idf * c[term] * 2.5 / (c[term] + 1.5 * (1 - 0.75 + 0.75 * c.total() / average))
  return scores


def assert_same_ranks(documents, query):
  expected, found = reference(documents, query), bm25(documents)(query)
  np.testing.assert_allclose(found * 2.5, expected, rtol=1e-12, atol=1e-12)
  # Ranks are those of the formula, and equal scores stay in the pool's order.
  order = np.argsort(-np.round(expected, 9), kind="stable")
  assert np.argsort(-np.round(found * 2.5, 9), kind="stable").tolist() == order.tolist()


def test_bm25_ranks_as_the_formula_does(shared):
  path = shared / "superni/tasks"
  instances = json.loads(sorted(path.glob("task*.json"))[0].read_text(encoding="utf-8"))["Instances"]
  documents = [instance["input"] for instance in instances[:150]]
  for instance in instances[150:170]:
    assert_same_ranks(documents, instance["input"])


def test_bm25_of_repeats_common_words_and_nothing():
  documents = ["the cat", "the dog dog", "the the cat cat cat sat", "", "a"]
  for query in ("cat cat dog", "the", "unknown", "", "the cat ."):
    assert_same_ranks(documents, query)
  assert bm25(documents)("the").tolist() == [0] * 5  # in more than half of the documents
  assert bm25(["", " "])("cat").tolist() == [0, 0]


def test_bm25_does_not_start_jax():
  code = "import sys; from mtx.tasks.shots import bm25; print(bm25(['a', 'b', 'c'])('b'), 'jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.startswith("[0.") and done.stdout.split()[-1] == "False"


def test_jax_stays_where_it_was_imported():
  code = (
    "import sys, jax; from mtx.tasks.shots import bm25; bm25(['a'])('a'); import jax.numpy; "
    "print(sys.modules['jax'] is jax)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.split() == ["True"]


@pytest.fixture
def collection(task):
  return Collection("asking", train=(task_of({"train": POOL, "validation": POOL}, "learn"),), heldout=(task,))


def test_a_collection_gets_prompts_in_its_heldout_tasks(collection):
  few = fewshot_prompts(lambda: collection, k=2, selector="bm25")
  assert few.train == collection.train and few.name == "asking"
  assert [task.name for task in few.heldout] == ["ask_2shot_bm25"]
  assert shown(next(few.heldout[0].rows("test", Reading()))["inputs"]) == [4, 0]
  both = fewshot_prompts(collection, k=2, pool="validation", parts=["train", "heldout"])
  assert dict(both.train[0].splits) == {"train": 30}


def test_gin_binds_it(collection):
  gin.external_configurable(lambda: collection, "asking_provider")
  gin.parse_config("fewshot_prompts.collection = @asking_provider\nfewshot_prompts.k = 1")
  assert fewshot_prompts().heldout[0].name == "ask_1shot_random"
  gin.parse_config("fewshot_prompts.collection = @asking_provider()")
  assert fewshot_prompts().heldout[0].name == "ask_1shot_random"


BAD = [
  ({"k": 0}, r"shots\.k is 0"),
  ({"selector": "bm52"}, r"shots\.selector 'bm52' is not known\n.*`bm25`"),
  ({"pool": "dev"}, r"task 'ask' has no split 'dev' to take examples from\n.*train, validation, test"),
  ({"demonstration": "{inputs} {target}"}, r"shots\.demonstration has a field \{target\}\n.*`targets`"),
  ({"demonstration": "{inputs}"}, r"shots\.demonstration is '\{inputs\}': it has no \{targets\}"),
  ({"query": "{inputs} {targets}"}, r"shots\.query has a field \{targets\}"),
  ({"query": "{inputs"}, r"shots\.query is '\{inputs': .*\n.*double braces"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_named(task, settings, message):
  with pytest.raises(UserError, match=message):
    shots(task, **{"k": 2, **settings})


def test_the_pool_is_never_judged(task):
  few = shots(task, 2, pool="validation")
  with pytest.raises(UserError, match="task 'ask': split 'validation' is the pool of examples"):
    list(few.rows("validation", Reading()))
  with pytest.raises(UserError, match="task 'one' has no split but 'train', which its examples are from"):
    shots(task_of({"train": POOL}, "one"), 2)


def test_pools_that_can_not_serve_are_named(task):
  with pytest.raises(UserError, match=r"task 'ask': split 'validation' has 2 rows, 3 examples are asked for\n.*`k`"):
    prompts(task, k=3, pool="validation")
  ids = task_of({"train": [{"inputs": [3, 4], "targets": [5]}] * 3, "test": TEST})
  with pytest.raises(UserError, match="rows of split 'train' are token ids"):
    prompts(ids, k=1)
  turns = task_of({"train": POOL, "test": [{"turns": [("user", "a"), ("assistant", "b")]}]})
  with pytest.raises(UserError, match="task 'ask': rows of split 'test' are turns"):
    prompts(turns, k=1)


def test_bad_parts_are_named(collection):
  with pytest.raises(UserError, match=r"fewshot_prompts\.parts: 'held' is not known\n.*`heldout`"):
    fewshot_prompts(collection, parts="held")
  with pytest.raises(UserError, match=r"fewshot_prompts\.parts: asking has no heldout tasks\n.*train"):
    fewshot_prompts(replace(collection, heldout=()))
  with pytest.raises(UserError, match=r"fewshot_prompts\.pool is 'train': .* nothing left to train on\n.*'validation'"):
    fewshot_prompts(collection, parts=["train"])
