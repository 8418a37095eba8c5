"""`mtx decode` keeps order and fields, goes on where it stopped, and names what is wrong with its input."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest

from mtx import decodetool
from mtx.data.cache import CachedMixture, CachedTask, write_index, write_split
from mtx.data.vocabulary import Vocabulary
from mtx.decode.settings import Settings
from mtx.errors import UserError
from mtx.eval.generate import Generator

PROMPTS = ["sort b a", "a much longer prompt than the others", "x", "copy me", "sort b a", "upper case", "yes?"]


@pytest.fixture(scope="module")
def opened(tiny, routed, weights, mesh1):
  """A tiny byte model with router rows for two tasks."""
  vocabulary = Vocabulary("byte")
  config = tiny("causal", vocab_size=vocabulary.size, decoder_layers=1, tied_head=False)
  model = routed(config, tasks=2)
  return SimpleNamespace(
    blueprint=model, config=config, params=weights(model), vocabulary=vocabulary, tasks=("sort", "copy")
  )


@pytest.fixture
def decode(opened, tmp_path, mesh1, monkeypatch):
  """decode(lines, *flags) -> lines of the output; the input is written anew each time."""
  monkeypatch.setattr(decodetool, "make_mesh", lambda: mesh1)
  monkeypatch.chdir(tmp_path)

  def call(lines, *flags, model=opened, output="out.jsonl", path="tiny"):
    given = []
    if lines is not None:
      text = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
      (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
      given = ["--input", "in.jsonl"]
    top = argparse.ArgumentParser()
    decodetool.add_commands(top.add_subparsers(dest="command"))
    arguments = top.parse_args(["decode", path, *given, "--output", output, "--length", "6", "--rows", "4", *flags])
    opener = decodetool.open_model if path != "tiny" else lambda path, mesh, architecture=None: model
    assert decodetool.run(arguments, opener=opener) == 0
    return [json.loads(line) for line in (tmp_path / output).read_text(encoding="utf-8").splitlines()]

  return call


def lines(task: str = "sort"):
  return [{"prompt": text, "id": i, "task": task, "ü": "ö"} for i, text in enumerate(PROMPTS)]


def test_order_and_fields(decode, opened, mesh1):
  """Every line comes back in its place with its fields, and with what the model says to it alone."""
  found = decode(lines())
  assert [{k: line[k] for k in ("prompt", "id", "task", "ü")} for line in found] == lines()
  alone = Generator(
    opened.blueprint, opened.config, mesh1, opened.vocabulary, inputs_length=64, settings=Settings(length=6), rows=1
  )
  for line in found:
    ids = [*opened.vocabulary.encode(line["prompt"]), opened.vocabulary.eos_id]
    (_, prediction), *_ = alone.stream(opened.params, [{"inputs": np.array(ids, np.int32)}], [0])
    assert line["prediction"] == prediction.texts[0]
    assert line["score"] == pytest.approx(prediction.scores[0], rel=1e-4)
  assert len({line["prediction"] for line in found}) > 3
  assert [line["prediction"] for line in decode(lines("copy"), output="copy.jsonl")] != [l["prediction"] for l in found]


def test_goes_on_where_it_stopped(decode, tmp_path, monkeypatch):
  """Cut after any number of lines, in the middle of one too, with windows smaller than the input: the same file."""
  monkeypatch.setattr(decodetool, "WINDOW", 3)
  sampled = ("--samples", "2", "--temperature", "1.2", "--top_p", "0.95", "--seed", "5")
  whole = decode(lines(), *sampled)
  path = tmp_path / "out.jsonl"
  content = path.read_bytes()
  assert all(len(line["predictions"]) == len(line["scores"]) == 2 for line in whole)
  ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
  for size in (0, ends[0], ends[3] + 9, ends[5] - 1, ends[6]):
    path.write_bytes(content[:size])
    decode(lines(), *sampled)
    assert path.read_bytes() == content


def test_other_settings_are_refused(decode, tmp_path):
  decode(lines())
  with pytest.raises(UserError, match=r"repetition_penalty was 1\.0 and is now 1.5"):
    decode(lines(), "--repetition_penalty", "1.5")
  with pytest.raises(UserError, match="input has changed"):
    decode(lines()[1:])
  (tmp_path / "out.jsonl.settings.json").unlink()
  with pytest.raises(UserError, match="was not written by `mtx decode`"):
    decode(lines())


def test_a_finished_file_opens_no_model(decode):
  whole = decode(lines())
  assert decode(lines(), model=None) == whole


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"prompt": "a", "task": "sort"}\n{"prompt": nope}\n', r"in\.jsonl:2:12: Expecting value"),
    ('\n{"promt": "a"}\n', r"in\.jsonl:2 has no inputs, prompt or turns \(fields: promt\)[^`]*did you mean `prompt`"),
    ('{"prompt": "a", "inputs": "b"}\n', r"in\.jsonl:1 has inputs and prompt"),
    ('{"prompt": ["a"]}\n', r"in\.jsonl:1: 'prompt' is list, not text"),
    ('{"turns": [{"role": "user"}]}\n', r"in\.jsonl:1: 'turns' is no conversation"),
    ("[1]\n", r"in\.jsonl:1 is no JSON object"),
    ("\n", r"in\.jsonl has no lines"),
    ('{"prompt": "a", "score": 3}\n', r"has a field 'score'"),
    ('{"prompt": "a"}\n', r"prompt 1 has no 'task', and the model routes by task"),
    ('{"prompt": "a", "task": "srot"}\n', r"no row for task 'srot'[^`]*did you mean `sort`"),
  ],
)
def test_bad_lines_are_named(decode, text, message):
  with pytest.raises(UserError, match=message):
    decode(text)


def test_bad_arguments_are_named(decode):
  with pytest.raises(UserError, match="either --input FILE or --mixture NAME"):
    decode(None)
  with pytest.raises(UserError, match=r"decode\.top_k is 5"):
    decode(lines(), "--top_k", "5")
  with pytest.raises(UserError, match="--rows is 0"):
    decode(lines(), "--rows", "0")


def test_conversations_go_through_the_chat_template(decode, opened):
  """`turns` is the same prompt as the text that the template makes of it."""

  class Chatting:
    """The bytes, with a template."""

    def __getattr__(self, name):
      return getattr(opened.vocabulary, name)

    def chat_ids(self, turns, add_generation_prompt=False):
      text = "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)
      return [*opened.vocabulary.encode(text + "<a>" * add_generation_prompt), opened.vocabulary.eos_id]

  model = SimpleNamespace(**{**vars(opened), "vocabulary": Chatting()})
  turns = [{"role": "u", "content": "hi"}, {"role": "a", "content": "ho"}]
  (talk, text) = decode([{"turns": turns, "task": "sort"}, {"inputs": "<u>hi<a>ho<a>", "task": "sort"}], model=model)
  assert talk["prediction"] == text["prediction"] and talk["turns"] == turns


def test_more_tokens_than_learned_positions_are_told(decode, opened, capsys):
  """Of one prompt of seven; nothing is said where the positions suffice, or are none that are learned."""
  decode(lines())
  assert "positions" not in capsys.readouterr().out
  for places, said in ((42, "1 of 7 prompts can go on past the 42 positions"), (64, "")):
    config = opened.config.copy_and_resolve_references()
    config.absolute_positions = places
    decode(lines(), model=SimpleNamespace(**{**vars(opened), "config": config}), output=f"{places}.jsonl")
    out = " ".join(capsys.readouterr().out.split())
    assert said in out and ("positions" in out) == bool(said)


def test_stop_texts_are_cut_off(decode):
  plain = decode(lines(), "--length", "12")
  stop = next(line["prediction"][1] for line in plain if len(line["prediction"]) > 2)
  for line, cut in zip(plain, decode(lines(), "--length", "12", "--stop", stop, output="cut.jsonl"), strict=True):
    assert cut["prediction"] == line["prediction"].split(stop)[0]


def test_a_split_of_tasks(decode, opened, tmp_path):
  """Every example of every task, with its id and references, by the task's own router row."""
  vocabulary = opened.vocabulary

  def task(name: str) -> CachedTask:
    examples = [
      {"inputs": [*vocabulary.encode(text), 1], "targets": [1], "id": f"{name}-{i}", "references": [text], "text": text}
      for i, text in enumerate(PROMPTS[:3])
    ]
    split = write_split(tmp_path / "tasks" / name, examples, fingerprint=name, ingredients={})
    return CachedTask(name, name, ("exact_match",), name, {"test": split})

  write_index(tmp_path, CachedMixture("both", (task("copy"), task("sort")), (0.5, 0.5), vocabulary))
  cached = ("--mixture", "both", "--cache_dir", str(tmp_path))
  found = decode(None, *cached)
  assert [line["id"] for line in found] == [f"{name}-{i}" for name in ("copy", "sort") for i in range(3)]
  texts = decode(
    [{"prompt": text, "task": name} for name in ("copy", "sort") for text in PROMPTS[:3]], output="b.jsonl"
  )
  assert [line["prediction"] for line in found] == [line["prediction"] for line in texts]
  assert found[0]["references"] == [PROMPTS[0]]
  with pytest.raises(UserError, match="no split 'train'"):
    decode(None, *cached, "--split", "train", output="c.jsonl")
  with pytest.raises(UserError, match=r"no mixture 'bth'[^`]*did you mean `both`"):
    decode(None, "--mixture", "bth", "--cache_dir", str(tmp_path), output="c.jsonl")
  other = SimpleNamespace(**{**vars(opened), "vocabulary": Vocabulary("byte", extra_ids=5)})
  with pytest.raises(UserError, match="another vocabulary"):
    decode(None, *cached, output="d.jsonl", model=other)


def test_a_checkpoint(decode, shared):
  """A real model from its files goes on with its published greedy sample, and three beams find what is likelier."""
  path = str(shared / "stories260k")
  sample = json.loads((shared / "stories260k" / "expected_greedy.json").read_text(encoding="utf-8"))["text"]
  begun, rest = sample[: sample.index(".") + 1], sample[sample.index(".") + 1 :]
  (story,) = decode([{"prompt": begun}], "--length", "60", "--stop", ".", output="story.jsonl", path=path)
  assert story["prediction"].strip() == rest[: rest.index(".")].strip()
  (better,) = decode([{"prompt": begun}], "--length", "12", "--beams", "3", output="beams.jsonl", path=path)
  (greedy,) = decode([{"prompt": begun}], "--length", "12", output="greedy.jsonl", path=path)
  assert better["score"] >= greedy["score"]
