"""Chat templates: a conversation as the text that a family was trained on.

They are Jinja, come with the model's files and may be anyone's, so they run in Jinja's sandbox. What they can use is
what transformers gives them (transformers.utils.chat_template_utils): `messages`, `add_generation_prompt`, `tools`,
`documents`, special tokens by name, `raise_exception`, `strftime_now`, `tojson`, loop controls, `generation` blocks.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mtx.errors import UserError

Turn = tuple[str, str] | Mapping[str, Any]


class _Generation(Extension):
  """`{% generation %}` marks what a model says; here it is its content."""

  tags = {"generation"}

  def parse(self, parser: Parser) -> list[nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
  raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  """Jinja's own escapes HTML."""
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
  extensions: list[type[Extension]] = [_Generation, loopcontrols]
  environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
  environment.filters["tojson"] = _tojson
  environment.globals["raise_exception"] = _raise
  environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
  return environment.from_string(template)


def rendered(
  template: str,
  turns: Sequence[Turn],
  *,
  add_generation_prompt: bool = False,
  names: Mapping[str, str] | None = None,
  **variables: Any,
) -> str:
  """The text of a conversation.

  Args:
    template: Jinja.
    turns: (role, text), or messages with whatever else the template reads.
    add_generation_prompt: whether the text ends where the assistant's next answer begins.
    names: special tokens, `bos_token` for example.
    variables: more that the template reads, `tools` or `enable_thinking` for example.

  Raises:
    UserError: a template that is none, or that refuses the conversation.
  """
  messages = [dict(turn) if isinstance(turn, Mapping) else {"role": turn[0], "content": turn[1]} for turn in turns]
  given = {"tools": None, "documents": None, **(names or {}), **variables}
  try:
    return _compiled(template).render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
  except jinja2.TemplateSyntaxError as error:
    raise UserError(f"line {error.lineno} of the chat template: {error.message}") from error
  except (jinja2.TemplateError, TypeError, ValueError, KeyError, OverflowError) as error:
    roles = ", ".join(str(message.get("role")) for message in messages)
    raise UserError(f"the chat template refuses a conversation of {roles}: {error}") from error
