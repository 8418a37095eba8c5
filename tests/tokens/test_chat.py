import folders
import pytest

from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.tokens.chat import rendered

TURNS = [("user", "the cat & <dog>"), ("assistant", " sum of\n"), ("user", "and then\n"), ("assistant", "is w")]


def messages(turns):
  return [{"role": role, "content": text} for role, text in turns]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
  """family(template): a vocabulary with it, of Llama 3's kind or, without a start token, of Qwen's."""
  root = tmp_path_factory.mktemp("chat")

  def make(template: str, kind: str = "llama3"):
    return getattr(folders, kind)(root / f"{kind}-{abs(hash(template))}", template)

  return make


@pytest.mark.parametrize(
  ("template", "kind"),
  [(folders.LLAMA3, "llama3"), (folders.LLAMA2, "llama3"), (folders.CHATML, "qwen"), (folders.THINKING, "qwen")],
)
def test_text_and_ids_equal_transformers(family, template, kind):
  transformers = pytest.importorskip("transformers")
  folder = family(template, kind)
  ours, theirs = Vocabulary.open(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
  for count in range(1, len(TURNS) + 1):
    for prompt in (False, True):
      turns = TURNS[:count]
      text = theirs.apply_chat_template(messages(turns), add_generation_prompt=prompt, tokenize=False)
      assert ours.chat(turns, prompt) == ours.chat(messages(turns), prompt) == text
      ids = theirs.apply_chat_template(messages(turns), add_generation_prompt=prompt)["input_ids"]
      begins = ids[0] == ours.start_id
      assert begins is (kind == "llama3" and template in (folders.LLAMA3, folders.LLAMA2))
      assert ours.chat_ids(turns, prompt) == ids[begins:]


def test_what_a_template_reads_beside_messages():
  transformers = pytest.importorskip("transformers")
  from transformers.utils.chat_template_utils import render_jinja_template

  del transformers
  tools = [{"type": "function", "function": {"name": "näme", "parameters": {"b": 1, "a": [True, None]}}}]
  turns = [*TURNS[:2], ("skip", "this")]
  ours = rendered(folders.CHATML, turns, tools=tools, add_generation_prompt=True)
  (theirs,), _ = render_jinja_template(
    conversations=[messages(turns)], tools=tools, chat_template=folders.CHATML, add_generation_prompt=True
  )
  assert ours == theirs and "näme" in ours and "skip" not in ours
  year = rendered("{{ strftime_now('%Y') }}", TURNS)
  assert len(year) == 4 and year.isdigit()


def test_templates_run_in_a_sandbox():
  for template in (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception.__globals__['json'] }}",
  ):
    with pytest.raises(UserError, match="the chat template refuses"):
      rendered(template, TURNS)


def test_what_a_template_refuses_is_told():
  with pytest.raises(UserError, match="refuses a conversation of user, user: Conversation roles must alternate"):
    rendered(folders.LLAMA2, [TURNS[0], TURNS[2]], names={"bos_token": "<s>"})
  with pytest.raises(UserError, match="line 2 of the chat template"):
    rendered("a\n{% if %}", TURNS)


def test_only_answers_count(family):
  """The answers' own tokens and what ends them, as generation would give them."""
  for template, kind, ends in ((folders.LLAMA3, "llama3", "<|eot|>"), (folders.CHATML, "qwen", "<|im_end|>")):
    vocabulary = Vocabulary.open(family(template, kind))
    inputs, targets, weights = vocabulary.conversation(TURNS)
    assert inputs == vocabulary.chat_ids(TURNS[:1], add_generation_prompt=True)
    whole = vocabulary.chat_ids(TURNS)
    assert whole[: len(inputs) + len(targets)] == [*inputs, *targets] and len(weights) == len(targets)
    said = [token for token, weight in zip(targets, weights, strict=True) if weight]
    text = "".join((vocabulary.spell(t) or vocabulary.written(t).encode()).decode() for t in said)
    strip = str.strip if kind == "llama3" else str
    assert text == "".join(strip(TURNS[i][1]) + ends for i in (1, 3))
    assert targets[-1] == vocabulary.eos_id and weights[-1] == 1


def test_an_answer_that_melts_into_its_prompt_still_counts(family):
  """The template ends its prompt with a line break; one more before the answer makes a token of both."""
  vocabulary = Vocabulary.open(family(folders.CHATML, "qwen"))
  turns = [("user", "dog"), ("assistant", "\nsum")]
  prompt, whole = vocabulary.chat_ids(turns[:1], True), vocabulary.chat_ids(turns)
  assert whole[: len(prompt)] != prompt
  inputs, targets, weights = vocabulary.conversation(turns)
  assert inputs == prompt[:-1] and all(weights)
  assert vocabulary.decode(targets) == "\n\nsum"


def test_an_answer_without_an_end_gets_one(family):
  plain = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
  )
  vocabulary = Vocabulary.open(family(plain, "qwen"))
  _, targets, weights = vocabulary.conversation([("user", "cat"), ("assistant", "dog")])
  assert targets[-1] == vocabulary.eos_id and all(weights) and vocabulary.decode(targets).strip() == "dog"


def test_a_template_that_changes_what_it_wrote_is_refused(family):
  vocabulary = Vocabulary.open(family(folders.THINKING, "qwen"))
  inputs, targets, _ = vocabulary.conversation(TURNS[:2])
  assert vocabulary.decode(targets).startswith("<think>") and inputs
  with pytest.raises(UserError, match="writes turn 2 otherwise once a conversation goes on"):
    vocabulary.conversation(TURNS)
  late = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
  with pytest.raises(UserError, match="writes its generation prompt otherwise"):
    Vocabulary.open(family(late, "qwen")).conversation(TURNS)
  with pytest.raises(UserError, match="without an answer"):
    vocabulary.conversation(TURNS[:1])


def test_a_family_without_a_template_says_so(tmp_path):
  vocabulary = Vocabulary.open(folders.gpt2(tmp_path))
  assert vocabulary.writing.chat is None
  with pytest.raises(UserError, match="has no chat template"):
    vocabulary.chat(TURNS)
