r"""Prompts by a checkpoint's own chat template, and how its models think.

    template = from_folder('/models/qwen3')
    prompt = template.render([{'role': 'user', 'content': 'What is 2 + 2?'}])
    prompt + thinking.opening()

A chat template is Jinja text that comes with a checkpoint, so it is not to be
trusted: it runs in Jinja's sandbox, which lets it read the messages and write
text, and nothing else. The helpers in it are those that templates are written
for: those of the library `transformers`.

`Thinking` says by which strings a model's thought begins and ends, and what is
put behind a prefix to make it answer at once.
"""

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from meta_rl import checks
from meta_rl.files import one_line

_TOKENS = ('bos_token', 'eos_token', 'pad_token', 'unk_token')

Messages = Sequence[Mapping[str, Any]]


class ChatTemplateError(ValueError):
  """A template that cannot be used; the message is one line."""


class ChatTemplate:
  """A compiled chat template."""

  def __init__(
    self,
    template: str,
    *,
    special_tokens: Mapping[str, str] | None = None,
    now: datetime.datetime | None = None,
    name: str = 'the chat template',
  ):
    """Compiles a template.

    Args:
      template: Jinja text.
      special_tokens: texts by their names, such as bos_token.
      now: what `strftime_now` tells. None: the time of rendering; a prompt of
        Llama 3 then changes from one day to the next.
      name: what messages call it.

    Raises:
      ChatTemplateError: jinja2 is missing, or the text is no Jinja.
    """
    self.text, self.name = template, name
    self._special_tokens = dict(special_tokens or {})
    self._now = now
    try:
      import jinja2
    except ImportError as error:
      raise ChatTemplateError(
        f"chat templates need jinja2 ({error}): run pip install 'meta-rl[llm]'"
      ) from error
    self._errors = (
      jinja2.TemplateError,
      ArithmeticError,
      AttributeError,
      LookupError,
      RecursionError,
      TypeError,
      ValueError,
    )
    try:
      self._compiled = self._environment().from_string(template)
    except (jinja2.TemplateError, RecursionError) as error:
      line = getattr(error, 'lineno', None)
      place = f', line {line}' if line else ''
      raise ChatTemplateError(
        f'{name} is no Jinja template{place}: {one_line(error)}'
      ) from error

  def render(
    self,
    messages: Messages,
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
  ) -> str:
    """Returns the text of a conversation.

    Args:
      messages: {'role', 'content', ...} in order.
      add_generation_prompt: whether the text ends with the beginning of an
        answer, for the model to go on.
      **variables: what else the template knows, such as `enable_thinking`,
        `tools` or `date_string`.

    Raises:
      ChatTemplateError: of the template: a role or an order that it refuses, a
        variable that it needs, something that the sandbox forbids.
    """
    checked = []
    for index, message in enumerate(messages):
      if not isinstance(message, Mapping) or 'role' not in message:
        raise ChatTemplateError(
          f"message {index} must be a dict with a 'role' and a 'content'"
        )
      checked.append(dict(message))
    values = self._special_tokens | {'tools': None, 'documents': None}
    try:
      return self._compiled.render(
        values
        | variables
        | {'messages': checked, 'add_generation_prompt': add_generation_prompt}
      )
    except self._errors as error:
      raise ChatTemplateError(
        f'{self.name} cannot be filled in: {one_line(error)}'
      ) from error

  def _environment(self):
    """Returns what templates are written for (transformers), sandboxed."""
    import jinja2
    from jinja2 import ext, sandbox

    class Generation(ext.Extension):
      """{% generation %} … {% endgeneration %}: its text, as it is."""

      tags = {'generation'}

      def parse(self, parser):
        """Returns the nodes between the two tags."""
        next(parser.stream)
        return parser.parse_statements(
          ('name:endgeneration',), drop_needle=True
        )

    def raise_exception(message):
      raise jinja2.TemplateError(str(message))

    def tojson(
      value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
    ):
      # Jinja's own escapes < > & ', which is for web pages.
      return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
      )

    def strftime_now(form):
      return (self._now or datetime.datetime.now()).strftime(form)

    environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[Generation, ext.loopcontrols],
    )
    environment.filters['tojson'] = tojson
    environment.globals |= {
      'raise_exception': raise_exception,
      'strftime_now': strftime_now,
    }
    return environment


def from_folder(
  folder: str | os.PathLike,
  *,
  variant: str = 'default',
  now: datetime.datetime | None = None,
) -> ChatTemplate:
  """Returns the chat template of a checkpoint.

  It is chat_template.jinja, or else 'chat_template' of tokenizer_config.json;
  the special tokens are those of tokenizer_config.json.

  Args:
    folder: with the checkpoint's files.
    variant: of a tokenizer_config.json that holds several templates by name.
    now: as in `ChatTemplate`.

  Raises:
    ChatTemplateError: no template, or a file that cannot be read.
  """
  folder = pathlib.Path(folder).expanduser()
  config_path = folder / 'tokenizer_config.json'
  config = {}
  if config_path.is_file():
    try:
      config = json.loads(config_path.read_text('utf-8'))
      if not isinstance(config, dict):
        raise ValueError('it holds no object')
    except (ValueError, RecursionError) as error:
      raise ChatTemplateError(
        f'{config_path} cannot be read: {one_line(error)}'
      ) from error
  file = folder / 'chat_template.jinja'
  if file.is_file():
    try:
      text = file.read_text('utf-8')
    except ValueError as error:
      raise ChatTemplateError(f'{file} is not UTF-8: {error}') from error
  else:
    file, text = config_path, config.get('chat_template')
  if isinstance(text, list):
    if not all(isinstance(t, dict) for t in text):
      raise ChatTemplateError(
        f'{file}: chat_template={checks.show(text)} is given; allowed is text, '
        'or a list of {"name": text, "template": text}'
      )
    named = {t.get('name'): t.get('template') for t in text}
    if variant not in named:
      raise ChatTemplateError(
        f'{file} has no chat template {variant!r}: it has '
        f'{sorted(map(str, named))}'
      )
    text = named[variant]
  elif variant != 'default':
    raise ChatTemplateError(
      f'{file} has one chat template, and variant={variant!r} is asked for'
    )
  if not isinstance(text, str):
    raise ChatTemplateError(
      f'{folder} has no chat template: neither chat_template.jinja nor '
      "'chat_template' in tokenizer_config.json; give one as text"
    )
  tokens = {}
  for name in _TOKENS:
    token = config.get(name)  # a text, or an object that has it
    token = token.get('content') if isinstance(token, dict) else token
    if isinstance(token, str):
      tokens[name] = token
  return ChatTemplate(text, special_tokens=tokens, now=now, name=str(file))


@dataclasses.dataclass(frozen=True)
class Thinking:
  r"""How a kind of model thinks, in strings.

    open thought \n\n termination \n close answer_prefix answer    (stopped)
    open thought                  \n close               answer    (ended)

  Attributes:
    name: of the kind.
    open: what begins a thought, '' if nothing does. It is put behind prompts
      that do not end with it already.
    close: what ends a thought; only what comes after it is graded.
    termination: what is put behind a thought to bring it to an end.
    answer_prefix: what an answer that was asked for begins with.
    stop_strings: what ends a response, besides the end-of-turn token.
  """

  name: str
  open: str
  close: str
  termination: str
  answer_prefix: str
  stop_strings: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.close:
      raise ValueError(
        "close='': give the string that ends a thought, such as '</think>'"
      )
    if '' in self.stop_strings:
      raise ValueError("stop_strings holds '', which would end every response")

  def opened(self, prompt: str) -> str:
    """Returns a prompt that ends with what begins a thought.

    Some templates write it, some do not; twice would be a thought in a thought.
    """
    has_it = prompt.rstrip().endswith(self.open.strip())
    # A text that ends with '' does so always: nothing is added then.
    return prompt if has_it else prompt + self.open

  def forced_stop(self) -> str:
    """Returns what is put behind a prefix, so that the answer comes next."""
    end = f'{self.termination}\n' if self.termination else ''
    return f'\n\n{end}{self.close}{self.answer_prefix}'

  def natural_stop(self) -> str:
    """Returns what is put behind a whole thought, so that the answer comes."""
    return f'\n{self.close}'

  def split(self, response: str) -> tuple[str, str | None]:
    """Returns (thought, answer) of a response, cut at the first stop string.

    The answer is what comes after the first `close`, None if there is none.

    Args:
      response: what comes after the prompt, with or without `open`.
    """
    response = cut(response, self.stop_strings)[0]
    thought, found, answer = response.partition(self.close)
    opening = self.open.strip()
    if opening and thought.lstrip().startswith(opening):
      thought = thought.lstrip()[len(opening) :]
    return thought, answer if found else None


THINKING = {
  # DeepSeek-R1 and what is distilled from it; the strings of the paper's
  # evaluation (arXiv 2503.07572, 'forced termination').
  'r1': Thinking(
    name='r1',
    open='<think>\n',
    close='</think>',
    termination=(
      "Time is up.\n\nGiven the time I've spent and the approaches I've tried, "
      'I should stop thinking and formulate a final answer based on what I '
      'already have.'
    ),
    answer_prefix='\n\n**Step-by-Step Explanation and Answer:**\n\n1. **',
  ),
  # Models without marks of a thought: they reason aloud, and a line of their
  # own says where the answer begins: one token of Llama 3 and SmolLM2, and
  # known from GSM8K. It must be in the prompt's instructions or in the warm
  # start's traces.
  'plain': Thinking(
    name='plain',
    open='',
    close='####',
    termination='',
    answer_prefix='',
  ),
}


def thinking(kind: str, **changes: Any) -> Thinking:
  """Returns how a kind of model thinks.

  Args:
    kind: a key of THINKING.
    **changes: fields of `Thinking` that are different.

  Raises:
    ValueError: no such kind or field, or a field that cannot be so.
  """
  checks.check_choice('thinking', kind, THINKING)
  known = [field.name for field in dataclasses.fields(Thinking)]
  unknown = sorted(set(changes) - set(known))
  if unknown:
    raise ValueError(f'unknown fields {unknown} of thinking: known are {known}')
  return dataclasses.replace(THINKING[kind], **changes)


def cut(text: str, stop_strings: Sequence[str]) -> tuple[str, bool]:
  """Returns a text up to its first stop string, and whether it had one.

  Of stop strings that begin at one place none is longer than the cut: the text
  before them is the same.

  Args:
    text: what was generated.
    stop_strings: none of them empty.

  Raises:
    ValueError: one string in place of a sequence, or an empty one.
  """
  if isinstance(stop_strings, str) or '' in stop_strings:
    raise ValueError(
      f'stop_strings={stop_strings!r}: give a sequence of texts, none empty'
    )
  places = [text.find(stop) for stop in stop_strings]
  places = [place for place in places if place >= 0]
  return (text[: min(places)], True) if places else (text, False)
