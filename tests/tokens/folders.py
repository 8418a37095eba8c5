"""Folders as families ship them, with tokenizers that are trained here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
  "Sort the numbers 3 1 2, then add 12345 to 6.",
  "naïve café – “quotes” don't\n\tmove it's 9.11!",
  " two  spaces and a line\n\nend ",
  "這件物品 ☃ emoji 😀 done",
  "",
  "  ",
]
CORPUS = [*TEXTS, *(f"the {a} of {b} is {a}{b} and then some" for a in ("cat", "dog", "sum") for b in "wxyz")] * 4

LLAMA3 = (
  "{% for message in messages %}{{ (bos_token if loop.first else '') + '<|head|>' + message['role'] + '<|/head|>\\n\\n'"
  " + message['content'] | trim + '<|eot|>' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"
)
LLAMA2 = (
  "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
  "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
  "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
  "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' + (tools | tojson(indent=2)) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{%- continue %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# A turn is written otherwise when it is the last one, as some that think do.
THINKING = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n"
  "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
  "{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(folder: Path, tokenizer: Tokenizer | None, **files: Any) -> Path:
  """tokenizer.json, and `name=object` as name.json."""
  folder.mkdir(parents=True, exist_ok=True)
  if tokenizer is not None:
    tokenizer.save(str(folder / "tokenizer.json"))
  for name, content in files.items():
    (folder / f"{name}.json").write_text(json.dumps(content))
  return folder


def byte_level(specials: Sequence[str], pattern: str | None = None) -> Tokenizer:
  """GPT-2's kind; `pattern` splits as Llama 3 and Qwen do."""
  tokenizer = Tokenizer(models.BPE())
  split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  )
  tokenizer.train_from_iterator(CORPUS, trainer)
  tokenizer.add_special_tokens(list(specials))  # last, as Llama 3 has them
  return tokenizer


def around(tokenizer: Tokenizer, template: str) -> Tokenizer:
  """With a template around a text, `<s> $A` for example."""
  names = [part for part in template.split() if part != "$A"]
  ids = [(name, tokenizer.token_to_id(name)) for name in names]
  tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
  return tokenizer


def gpt2(folder: Path) -> Path:
  end = "<|endoftext|>"
  settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end, "unk_token": end}
  model = {"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": byte_level([end]).token_to_id(end)}
  return write(folder, byte_level([end]), tokenizer_config=settings, config=model)


def llama3(folder: Path, template: str = LLAMA3) -> Path:
  marks = ["<|begin|>", "<|end|>", "<|head|>", "<|/head|>", "<|eot|>"]
  digits = (
    r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  )
  tokenizer = around(byte_level(marks, digits), "<|begin|> $A")
  stops = [tokenizer.token_to_id(mark) for mark in ("<|end|>", "<|eot|>")]
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin|>",
    "eos_token": {"content": "<|eot|>", "lstrip": False, "rstrip": False, "normalized": False, "__type": "AddedToken"},
    "chat_template": template,
  }
  generation = {"eos_token_id": stops}
  return write(
    folder, tokenizer, tokenizer_config=settings, generation_config=generation, config={"model_type": "llama"}
  )


def qwen(folder: Path, template: str = CHATML) -> Path:
  """No token begins a row; the template lies in a file of its own."""
  split = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  )
  tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], split)
  tokenizer.normalizer = normalizers.NFC()
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_bos_token": False,
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "chat_template": "another",
  }
  write(folder, tokenizer, tokenizer_config=settings, config={"model_type": "qwen2"})
  (folder / "chat_template.jinja").write_text(template)
  return folder


def t5(folder: Path, sentinels: int = 7) -> Path:
  """A unigram model with sentinels that count down from the end."""
  tokenizer = Tokenizer(models.Unigram())
  tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Metaspace()
  trainer = trainers.UnigramTrainer(
    vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
  )
  tokenizer.train_from_iterator(CORPUS, trainer)
  tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(sentinels))])
  around(tokenizer, "$A </s>")
  names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
  model = {"model_type": "t5", "is_encoder_decoder": True, "decoder_start_token_id": 0, "eos_token_id": 1}
  return write(
    folder,
    tokenizer,
    tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"},
    special_tokens_map=names,
    config=model,
  )


def bart(folder: Path) -> Path:
  """Texts of an encoder-decoder that also begin with a token."""
  tokenizer = around(byte_level(["<s>", "<pad>", "</s>"]), "<s> $A </s>")
  names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
  end = tokenizer.token_to_id("</s>")
  model = {"model_type": "bart", "is_encoder_decoder": True, "decoder_start_token_id": end, "eos_token_id": end}
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
  return write(folder, tokenizer, tokenizer_config=settings, config=model)
