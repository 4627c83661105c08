"""Tokenizers of language models, with the few ids that a text task needs.

    load('/models/Qwen2.5-0.5B-Instruct')    a folder in Hugging Face format
    load('bytes')                            every byte a token, for trials

The tokenizer itself is HF `tokenizers`, from the folder's own tokenizer.json.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

BYTES = 'bytes'
# Of the byte tokenizer; each is one token.
_SPECIAL = ('<pad>', '<eos>', '<|im_start|>', '<|im_end|>', '<think>')
_SPECIAL += ('</think>',)
# How '\n' is written inside a token of a byte-level vocabulary.
_LINE_BREAKS = ('\n', 'Ċ', '<0x0A>')


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
  """A tokenizer and what is known of it.

  Attributes:
    tokenizer: of HF `tokenizers`.
    eos_id: what ends an answer.
    pad_id: fills what is no token; any id will do.
    bos_id: what every prompt begins with, unless its template says so itself;
      None: nothing.
    chat_template: Jinja source, '' for a model without one.
    special: {name: text} of tokenizer_config.json, such as bos_token.
  """

  tokenizer: tokenizers.Tokenizer
  eos_id: int
  pad_id: int
  bos_id: int | None = None
  chat_template: str = ''
  special: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def vocab_size(self) -> int:
    """Token ids are below it."""
    return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, nothing added to it."""
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
    """Returns the text of ids.

    Args:
      ids: token ids; those of no token have no text.
      special: with the texts of special tokens, such as end-of-text.
    """
    size = self.tokenizer.get_vocab_size(with_added_tokens=True)
    known = [int(i) for i in ids if 0 <= int(i) < size]
    return self.tokenizer.decode(known, skip_special_tokens=not special)

  def id_of(self, token: str) -> int:
    """Returns the id of a text that is one token.

    Raises:
      ValueError: it is none, or several.
    """
    known = self.tokenizer.token_to_id(token)
    if known is not None:
      return known
    ids = self.encode(token)
    if len(ids) != 1:
      raise ValueError(
        f'{token!r} is {len(ids)} tokens of this tokenizer: a marker that ends '
        'thinking must be one token'
      )
    return ids[0]

  def line_break_ids(self, count: int = 1) -> tuple[int, ...]:
    """Returns the tokens that hold at least `count` line breaks in a row."""
    return tuple(
      sorted(
        index
        for token, index in self.tokenizer.get_vocab().items()
        if any(mark * count in token for mark in _LINE_BREAKS)
      )
    )


@functools.lru_cache(maxsize=8)
def load(path: str) -> TextTokenizer:
  """Returns the tokenizer of a checkpoint; read once a process.

  Args:
    path: a folder with tokenizer.json, a .gguf file, or 'bytes'.

  Raises:
    ValueError: there is none, or a file that cannot be read.
  """
  if path == BYTES:
    return _bytes()
  folder = pathlib.Path(path).expanduser()
  if not folder.is_dir():
    raise ValueError(
      f'task.tokenizer={path!r}: no such folder; give one with a '
      f'tokenizer.json in it, or {BYTES!r}.'
    )
  file = folder / 'tokenizer.json'
  if not file.is_file():
    raise ValueError(
      f'{folder} has no tokenizer.json: save it with a fast tokenizer of '
      'transformers (save_pretrained).'
    )
  try:
    tokenizer = tokenizers.Tokenizer.from_file(os.fspath(file))
  except Exception as error:  # `tokenizers` raises bare Exception
    raise ValueError(f'{file} is no tokenizer: {error}') from error
  settings = _read(folder / 'tokenizer_config.json')
  special = {
    name: value['content'] if isinstance(value, dict) else value
    for name, value in settings.items()
    if name.endswith('_token') and isinstance(value, str | dict)
  }
  template = settings.get('chat_template') or ''
  if isinstance(template, list):  # several by name
    named = {each.get('name'): each.get('template', '') for each in template}
    template = named.get('default', '')
  if (folder / 'chat_template.jinja').is_file():
    template = (folder / 'chat_template.jinja').read_text('utf-8')
  eos = _eos(folder, tokenizer, special)
  pad = tokenizer.token_to_id(special.get('pad_token', '')) or 0
  bos = None
  if settings.get('add_bos_token', 'bos_token' in special):
    bos = tokenizer.token_to_id(special.get('bos_token', ''))
  return TextTokenizer(tokenizer, eos, pad, bos, template, special)


def _read(file: pathlib.Path) -> dict:
  try:
    found = json.loads(file.read_text('utf-8'))
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise ValueError(f'{file} is not JSON: {error}') from None
  if not isinstance(found, dict):
    raise ValueError(f'{file} holds no JSON object')
  return found


def _eos(folder, tokenizer, special) -> int:
  """Returns what ends an answer: that of generation comes first."""
  for name in ('generation_config.json', 'config.json'):
    given = _read(folder / name).get('eos_token_id')
    given = given[0] if isinstance(given, list) and given else given
    if isinstance(given, int):
      return given
  found = tokenizer.token_to_id(special.get('eos_token', ''))
  if found is None:
    raise ValueError(
      f'{folder} does not say which token ends a text: put eos_token into its '
      'tokenizer_config.json.'
    )
  return found


def _bytes() -> TextTokenizer:
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  words = [*_SPECIAL, *alphabet]
  vocabulary = {word: index for index, word in enumerate(words)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(list(_SPECIAL))
  return TextTokenizer(
    tokenizer,
    eos_id=vocabulary['<|im_end|>'],
    pad_id=0,
    chat_template='',
    special={'eos_token': '<|im_end|>', 'pad_token': '<pad>'},
  )
