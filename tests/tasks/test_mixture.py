"""Collections to one source: names, vocabularies, what is held out, SeqIO's view of it, and the messages."""

import functools
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from texts import chat_rows, collection, ids_rows, text_task

from mtx.data.build import build_mixture
from mtx.data.cache import open_mixture
from mtx.errors import UserError
from mtx.tasks.encode import encoded
from mtx.tasks.holdout import hold_out
from mtx.tasks.language import language_text
from mtx.tasks.metrics import mean_score
from mtx.tasks.mixture import mixture
from mtx.tasks.rates import benchmark_shares, by_category, explicit, few, proportional, temperature, uniform
from mtx.tasks.source import seqio
from mtx.tasks.task import Reading, TaskInfo, TextTask

BYTES = {"vocabulary": "bytes"}


def names(mixture_name):
  return [task.name for task in seqio.MixtureRegistry.get(mixture_name).tasks]


def test_sources_become_one_mixture_with_one_vocabulary():
  zoo = collection("zoo", [text_task("zoo_a"), text_task("zoo_b", "other")], [text_task("zoo_c", test=5)])
  farm = collection("farm", [text_task("farm_a", train=10)])
  source = mixture([zoo, lambda: farm], name="both", **BYTES)
  assert (source.train, source.heldout) == ("both_train", "both_heldout")
  assert sorted(names("both_train")) == ["farm_a", "zoo_a", "zoo_b"] and names("both_heldout") == ["zoo_c"]
  assert source.sources == {"zoo_a": "zoo", "zoo_b": "zoo", "farm_a": "farm", "zoo_c": "zoo"}
  assert source.categories["zoo_b"] == "other"
  rate = seqio.MixtureRegistry.get("both_train").get_rate
  assert [rate(seqio.TaskRegistry.get(name)) for name in ("zoo_a", "farm_a")] == [30, 10]
  assert mixture([zoo]).train == "zoo_train"  # a single source keeps its name


def test_a_vocabulary_of_whole_words():
  text = functools.partial(language_text, languages=2, documents=5)
  v = mixture([text], vocabulary_type="word", vocabulary_size=1000, extra_ids=4).vocabulary
  for task in text().train:
    for row in task.rows("train", Reading()):
      ids = v.encode(row["targets"])
      assert len(ids) == len(row["targets"].split()) and v.decode(ids) == row["targets"]
      assert v.unk_id not in ids
  with pytest.raises(UserError, match="vocabulary type 'words' is not known"):
    mixture([text], vocabulary_type="words", vocabulary_size=1000)


def test_seqio_reads_the_same_tokens_as_the_cache_builder():
  """Text, ids and conversations, through SeqIO's registry and by `encoded`; SeqIO's own tokeniser agrees on text."""
  talk = [[("user", "hi"), ("assistant", "hello"), ("user", "cat?"), ("assistant", "meow")]]
  tasks = [
    text_task("zoo_text"),
    TextTask("zoo_ids", "ids", ids_rows, {"train": 4}),
    TextTask("zoo_chat", "chat", functools.partial(chat_rows, turns=talk), {"train": 1}),
  ]
  source = mixture([collection("zoo", tasks)], **BYTES)
  v = source.vocabulary
  for task in tasks:
    dataset = seqio.get_mixture_or_task(task.name).get_dataset(None, "train", shuffle=False)
    theirs = list(dataset.as_numpy_iterator())
    ours = list(encoded(task, "train", Reading(v.encode, v.vocab_size, v.extra_ids), v.eos_id))
    assert len(ours) == len(theirs) == task.splits["train"]
    for a, b in zip(ours, theirs, strict=True):
      assert a["inputs"].tolist() == b["inputs"].tolist() and a["targets"].tolist() == b["targets"].tolist()
      assert (a["id"], a["references"]) == (b["id"].decode(), json.loads(b["references"]))
      if a["text"] and task.name == "zoo_text":
        assert a["inputs"].tolist() == [*v.encode_tf(a["text"]).numpy().tolist(), 1]


def test_seqio_scores_by_the_same_metrics():
  """Through SeqIO's own metric class: of texts, item by item and together; without those of options."""
  metrics = ("rouge_l", "macro_f1", "accuracy")
  task = replace(text_task("zoo_metrics", validation=4), metrics=metrics)
  mixture([collection("zoo", [task])], **BYTES)
  registered = seqio.TaskRegistry.get("zoo_metrics")
  assert [each.__name__ for each in registered.metric_fns] == ["rouge_l", "macro_f1"]
  references, said = [["a cat"], ["no"], ["no"], ["a cat", "cat"]], ["the cat", "no", "no", "cat"]
  encoded_said = [registered.output_features["targets"].vocabulary.encode(text) for text in said]
  output = np.array([tokens + [0] * (8 - len(tokens)) for tokens in encoded_said], np.int32)
  for metric_fn in registered.metric_fns:
    metric = seqio.metrics.LegacyMetric.empty(metric_fn, registered.postprocess_fn)
    found = metric.from_model_output(
      inputs=[{"references": json.dumps(each), "targets_pretokenized": ""} for each in references],
      model_output=output,
      features=registered.output_features,
    ).compute()
    assert found == {metric_fn.__name__: mean_score(metric_fn.__name__, references, said)}


def test_the_loss_of_a_conversation_counts_answers_only():
  talk = [("user", "ab"), ("assistant", "c"), ("user", "de"), ("assistant", "f")]
  task = TextTask("chat", "chat", functools.partial(chat_rows, turns=[talk]), {"train": 1})
  (example,) = encoded(task, "train", Reading(lambda text: [ord(c) for c in text]), 1)
  assert example["inputs"].tolist() == [97, 98, 1]
  assert example["targets"].tolist() == [99, 1, 100, 101, 1, 102, 1]
  assert example["weights"].tolist() == [1, 1, 0, 0, 0, 1, 1]
  assert example["references"] == ["f"]


@pytest.mark.parametrize(
  ("turns", "reason"),
  [
    ([("user", "a"), ("assistent", "b")], "role 'assistent'"),
    ([("assistant", "a"), ("assistant", "b")], "the first of a user"),
    ([("user", "a"), ("assistant", "b"), ("user", "c")], "the last of the assistant"),
  ],
)
def test_turns_that_are_no_conversation_are_named(turns, reason):
  task = TextTask("chat", "chat", functools.partial(chat_rows, turns=[turns]), {"train": 1})
  with pytest.raises(UserError, match=f"task 'chat', train row 0: .*{reason}"):
    list(encoded(task, "train", Reading(), 1))


def test_bad_rows_stop_the_reading_or_are_counted():
  task = text_task("zoo_a", bad=(3, 7), train=10)
  ids = lambda text: [1]
  with pytest.raises(UserError, match=r"zoo_a.jsonl:4: not JSON\n.*build.bad_rows = 100"):
    list(encoded(task, "train", Reading(ids), 1))
  with pytest.raises(UserError, match=r"zoo_a.jsonl:8: not JSON \(bad row 2 of this split\)"):
    list(encoded(task, "train", Reading(ids, budget=1), 1))
  reading = Reading(ids, budget=2)
  assert len(list(encoded(task, "train", reading, 1))) == 8
  assert reading.bad == [("zoo_a.jsonl:4", "not JSON"), ("zoo_a.jsonl:8", "not JSON")]


def test_shards_interleave_to_the_whole():
  """With bad rows too: shard s of n has good rows s, s + n, ..."""
  task = text_task("zoo_a", bad=(2, 11), train=20)
  read = lambda shard, shards: [
    e["id"] for e in encoded(task, "train", Reading(lambda text: [1], budget=9), 1, shard, shards)
  ]
  whole = read(0, 1)
  for shards in (2, 3):
    assert [read(s, shards) for s in range(shards)] == [whole[s::shards] for s in range(shards)]


@pytest.mark.parametrize(
  ("train", "heldout", "message"),
  [
    (["zoo_a", "zoo_b"], ["zoo_b"], "task 'zoo_b' is listed in train and held out at once"),
    (["zoo_a", "zoo_a"], [], r"2 tasks are called 'zoo_a' \(sources: zoo, zoo\)"),
    ([], [], "the sources of the mixture have no tasks"),
    (["zoo a"], [], "task 'zoo a' has ' ' in its name"),
  ],
)
def test_wrong_lists_of_tasks_are_named(train, heldout, message):
  with pytest.raises(UserError, match=message):
    mixture([collection("zoo", map(text_task, train), map(text_task, heldout))], **BYTES)


def test_an_unknown_metric_names_the_near_one():
  task = TextTask("zoo_ids", "ids", ids_rows, {"train": 4}, ("rouge_L",))
  with pytest.raises(UserError, match=r"metric 'rouge_L' is not known\n.*`rouge_l`"):
    mixture([collection("zoo", [task])], **BYTES)


def test_parts_scale_the_rates_of_one_mixture(tmp_path):
  """All parts hold all training tasks, so that routers keep their rows; DMT's second stage replays a little."""
  zoo = [collection("math", [text_task("m_a", train=80)]), collection("chat", [text_task("c_a", train=40)])]
  parts = {"special": {"source=math": 1}, "general": {"source=chat": 1, "task=m_*": 0.25}}
  source = mixture(zoo, parts=parts, **BYTES)
  assert source.parts == {"special": "mixture_special", "general": "mixture_general"}
  expected = {"mixture_train": [1 / 3, 2 / 3], "mixture_special": [0, 1], "mixture_general": [2 / 3, 1 / 3]}
  for name, rates in expected.items():
    cached = build_mixture(source, name, tmp_path, log=lambda line: None)
    assert [task.name for task in cached.tasks] == ["c_a", "m_a"]
    np.testing.assert_allclose(cached.rates, rates)


def test_a_part_may_have_its_own_rates(tmp_path):
  zoo = [collection("math", [text_task("m_a", train=80)]), collection("chat", [text_task("c_a", train=40)])]
  parts = {"capped": {"source=*": 1}, "plain": {"source=*": 1}}
  source = mixture(zoo, parts=parts, part_rates={"capped": lambda tasks: proportional(tasks, cap=20)}, **BYTES)
  for name, rates in {"capped": [1 / 2, 1 / 2], "plain": [1 / 3, 2 / 3]}.items():
    np.testing.assert_allclose(build_mixture(source, f"mixture_{name}", tmp_path, log=lambda line: None).rates, rates)
  with pytest.raises(UserError, match=r"(?s)mixture.part_rates: 'caped' is no part.*`capped`"):
    mixture(zoo, parts=parts, part_rates={"caped": proportional}, **BYTES)


class TestReplay:
  """Dual-stage mixed fine-tuning: all general data and a fixed part of the specialised."""

  zoo = [collection("math", [text_task("m_a", train=400)]), collection("chat", [text_task("c_a", train=40)])]

  def ids(self, tmp_path, written, zoo=None, rates=proportional):
    """(ids of the replayed task, its share) in the second stage's mixture."""
    parts = {"general": {"source=chat": 1, "task=m_*": written}}
    source = mixture(zoo or self.zoo, parts=parts, rates=rates, **BYTES)
    cached = build_mixture(source, "mixture_general", tmp_path, log=lambda line: None)
    assert [task.name for task in cached.tasks] == ["c_a", "m_a"]  # as in training: routers keep their rows
    assert len(cached.tasks[0].splits["train"]) == 40
    train = cached.tasks[1].splits["train"]
    assert [len(x) for x in (train.lengths, train)] == [len(train)] * 2
    return [train[i]["id"] for i in range(len(train))], cached.rates[1]

  def test_the_same_rows_come_every_time(self, tmp_path):
    first, share = self.ids(tmp_path / "one", {"replay": "1/16", "seed": 3})
    assert 10 <= len(first) <= 45 and first == sorted(first, key=lambda i: int(i.removeprefix("train")))
    again, _ = self.ids(tmp_path / "one", {"replay": 0.0625, "seed": 3})  # found in the index
    elsewhere, _ = self.ids(tmp_path / "two", {"replay": "1/16", "seed": 3})
    assert first == again == elsewhere
    assert share == pytest.approx(len(first) / (len(first) + 40))  # each example as often as a general one

  def test_another_seed_gives_others(self, tmp_path):
    drawn = [set(self.ids(tmp_path, {"replay": 0.1, "seed": seed})[0]) for seed in range(3)]
    assert len(set(map(frozenset, drawn))) == 3
    assert self.ids(tmp_path, {"replay": 0.1})[0] == self.ids(tmp_path, {"replay": 0.1, "seed": 0})[0]

  def test_a_smaller_fraction_is_a_part_of_a_larger_one_and_growth_keeps_it(self, tmp_path):
    small, large = (set(self.ids(tmp_path, {"replay": k})[0]) for k in ("1/16", "1/4"))
    assert small < large
    grown = [collection("math", [text_task("m_a", train=800)]), self.zoo[1]]
    more = set(self.ids(tmp_path, {"replay": "1/16"}, grown)[0])
    assert small < more and {i for i in more if int(i.removeprefix("train")) < 400} == small

  def test_all_of_it(self, tmp_path):
    ids, share = self.ids(tmp_path, {"replay": 1})
    assert len(ids) == 400 and share == pytest.approx(400 / 440)

  def test_a_strategy_rules_the_rest(self, tmp_path):
    ids, share = self.ids(tmp_path, {"replay": "1/4"}, rates=uniform)
    assert share == pytest.approx(len(ids) / 400 / (1 + len(ids) / 400))

  def test_the_cache_keeps_it(self, tmp_path):
    """Where there is no source, and in other processes; what else is cached does not change."""
    ids, _ = self.ids(tmp_path, {"replay": "1/16"})
    reopened = open_mixture(tmp_path, "mixture_general")
    train = pickle.loads(pickle.dumps(reopened.tasks[1].splits["train"]))
    assert [train[i]["id"] for i in range(len(train))] == ids
    assert train.manifest["count"] == len(ids) and train.manifest["tokens"]["inputs"] == train.lengths[:, 0].sum()
    with pytest.raises(IndexError):
      train[len(ids)]
    whole = build_mixture(mixture(self.zoo, **BYTES), "mixture_train", tmp_path, log=lambda line: None)
    assert len(whole.tasks[1].splits["train"]) == 400 and whole.tasks[1].fingerprint != reopened.tasks[1].fingerprint
    assert whole.tasks[0].fingerprint == reopened.tasks[0].fingerprint
    assert len(list((tmp_path / "tasks" / "m_a").glob("train-*"))) == 1  # examples lie there once

  def test_another_seed_is_another_mixture(self, tmp_path):
    prints = set()
    for seed in (0, 1):
      self.ids(tmp_path, {"replay": 0.1, "seed": seed})
      prints.add(open_mixture(tmp_path, "mixture_general").fingerprint)
    assert len(prints) == 2

  def test_no_example_at_all_is_an_error(self, tmp_path):
    with pytest.raises(UserError, match=r"mixture.parts replays 1e-06 of m_a, which is no example at all"):
      self.ids(tmp_path, {"replay": 1e-6})

  @pytest.mark.parametrize(
    ("written", "message"),
    [
      ({"replay": 0}, r"\['a'\]: 'source=zoo' replays 0\n  a fraction above 0"),
      ({"replay": "1/0"}, "replays '1/0'"),
      ({"replay": "some"}, "replays 'some'"),
      ({"replay": 2}, "replays 2"),
      ({"seed": 1}, "replays None"),
      ({"replay": 0.5, "sede": 1}, "has a field 'sede'\n.*`seed`"),
      ({"replay": 0.5, "seed": 0.5}, "has the seed 0.5"),
    ],
  )
  def test_what_is_no_replay_is_named(self, written, message):
    with pytest.raises(UserError, match=message):
      mixture([collection("zoo", [text_task("zoo_a")])], parts={"a": {"source=zoo": written}}, **BYTES)


@pytest.mark.parametrize(
  ("parts", "message"),
  [
    ({"train": {"source=zoo": 1}}, "'train' is taken"),
    ({"a": {"source=zo": 1}}, r"mixture.parts\['a'\]: 'source=zo' matches no training task"),
    ({"a": {"zoo": 1}}, r"mixture.parts\['a'\]: 'zoo' is not KIND=VALUE"),
    ({"a": {"source=zoo": -1}}, "has the factor -1"),
  ],
)
def test_wrong_parts_are_named(parts, message):
  with pytest.raises(UserError, match=message):
    mixture([collection("zoo", [text_task("zoo_a")])], parts=parts, **BYTES)


class TestHoldout:
  train = [("zoo", text_task("zoo_a")), ("zoo", text_task("zoo_b", "other")), ("farm", text_task("farm_a", train=200))]

  @pytest.mark.parametrize(
    ("spec", "expected"),
    [("category=other", ["zoo_b"]), ("task=*_a", ["zoo_a", "farm_a"]), ("source=farm", ["farm_a"])],
  )
  def test_whole_tasks(self, spec, expected):
    kept, held = hold_out(self.train, [spec])
    assert [t.name for _, t in held] == expected
    assert {t.name for _, t in kept} == {"zoo_a", "zoo_b", "farm_a"} - set(expected)
    for _, task in held:  # nothing of them is left to learn from
      if task.name != "farm_a":
        assert task.splits["test"] == 6
      else:
        assert dict(task.splits) == {"test": 200} and len(list(task.rows("test", Reading()))) == 200

  def test_instances(self):
    """Tasks without a test split get one of their training rows; the two are disjoint, and stay as tasks grow."""
    kept, held = hold_out(self.train, ["instances=0.2"])
    assert not held
    task = {t.name: t for _, t in kept}
    assert task["zoo_a"] is self.train[0][1]
    ids = {split: {row["id"] for row in task["farm_a"].rows(split, Reading())} for split in ("train", "test")}
    assert not ids["train"] & ids["test"] and len(ids["train"] | ids["test"]) == 200
    assert 20 <= len(ids["test"]) <= 60
    larger, _ = hold_out([("farm", text_task("farm_a", train=300))], ["instances=0.2"])
    assert ids["test"] <= {row["id"] for row in larger[0][1].rows("test", Reading())}

  @pytest.mark.parametrize(
    ("spec", "message"),
    [
      ("categories=x", r"'categories=x' is not KIND=VALUE\n.*`category`"),
      ("category", "is not KIND=VALUE"),
      ("category=othr", r"category='othr' matches no training task\n.*`other`"),
      ("instances=2", "the share is between 0 and 1"),
    ],
  )
  def test_wrong_specifications_are_named(self, spec, message):
    with pytest.raises(UserError, match=message):
      hold_out(self.train, [spec])


INFOS = [
  TaskInfo("a1", "qa", "flan", 10_000),
  TaskInfo("a2", "qa", "flan", 100),
  TaskInfo("b1", "nli", "ni", 400),
]


def shares(rates):
  return np.asarray(rates) / sum(rates)


class TestRates:
  def test_proportional_equals_seqio(self):
    mixture([collection("zoo", [text_task(t.name, train=t.examples) for t in INFOS])], **BYTES)
    tasks = [seqio.TaskRegistry.get(t.name) for t in INFOS]
    assert proportional(INFOS, cap=4096) == [seqio.mixing_rate_num_examples(t, maximum=4096) for t in tasks]
    scaled = [seqio.mixing_rate_num_examples(t, temperature=2.0) for t in tasks]
    np.testing.assert_allclose(shares(temperature(INFOS, temperature=2.0)), shares(scaled))

  def test_uniform_and_temperature_limits(self):
    assert uniform(INFOS) == [1.0] * 3
    np.testing.assert_allclose(shares(temperature(INFOS, temperature=1.0)), shares(proportional(INFOS)))
    np.testing.assert_allclose(shares(temperature(INFOS, temperature=1e9)), 1 / 3, rtol=1e-6)

  def test_by_category_then_task(self):
    np.testing.assert_allclose(shares(by_category(INFOS)), [0.5 * 100 / 101, 0.5 / 101, 0.5])

  def test_opt_iml(self):
    """Benchmarks at fixed shares, tasks inside them by min(n, 4096)."""
    rates = benchmark_shares(INFOS, shares={"flan": 20, "ni": 25}, within=lambda tasks: proportional(tasks, cap=4096))
    np.testing.assert_allclose(rates, [20 * 4096 / 4196, 20 * 100 / 4196, 25])

  def test_few_takes_categories_in_turn(self):
    """More tasks contain fewer ones, every source has its own, and the others are not drawn."""
    infos = [TaskInfo(f"{c}{i}", c, "flan", 40 - 10 * i) for c in "xyz" for i in (1, 2, 3)] + [
      TaskInfo("t", "q", "text", 5)
    ]
    chosen = {n: {t.name for t, rate in zip(infos, few(infos, count=n), strict=True) if rate} for n in range(1, 10)}
    assert chosen[1] == {"x1", "t"} and chosen[4] == {"x1", "y1", "z1", "x2", "t"} and len(chosen[9]) == 10
    assert all(chosen[n] < chosen[n + 1] for n in range(1, 9))
    assert few(infos, count=4, within=lambda tasks: proportional(tasks, cap=15))[:4] == [15.0, 15.0, 0.0, 15.0]

  def test_explicit_takes_the_longest_pattern(self):
    assert explicit(INFOS, rates={"a*": 2.0, "a2": 5.0}) == [2.0, 5.0, 0.0]

  @pytest.mark.parametrize(
    ("call", "message"),
    [
      (lambda: explicit(INFOS, rates={"c": 1.0}), r"explicit.rates: 'c' matches nothing"),
      (lambda: explicit(INFOS, rates={"a1": -1.0}), "'a1' has rate -1.0"),
      (lambda: benchmark_shares(INFOS, shares={"flan": 1}), "has no share for source 'ni'"),
      (lambda: few(INFOS, count=0), "few.count is 0"),
      (lambda: temperature(INFOS, temperature=0), "temperature.temperature is 0"),
      (lambda: proportional(INFOS, cap=0), "proportional.cap is 0"),
    ],
  )
  def test_wrong_rates_are_named(self, call, message):
    with pytest.raises(UserError, match=message):
      call()
