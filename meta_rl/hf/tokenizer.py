"""The tokenizer that a checkpoint brings, with its special ids and template."""

import dataclasses
from pathlib import Path

import tokenizers

from meta_rl.checks import show
from meta_rl.files import one_line
from meta_rl.hf.tensors import read_json
from meta_rl.weights import WeightsError

TEMPLATE_NAME = 'chat_template.jinja'


@dataclasses.dataclass(frozen=True)
class TokenizerInfo:
  """What is needed to turn text into tokens of a model, and back.

  Attributes:
    tokenizer: an HF `tokenizers` tokenizer.
    chat_template: Jinja source, None if the checkpoint has none.
    bos_id: begins a text; None: no such token.
    eos_ids: any of them ends a text; the first is the tokenizer's own.
    pad_id: None: no such token.
  """

  tokenizer: tokenizers.Tokenizer
  chat_template: str | None
  bos_id: int | None
  eos_ids: tuple[int, ...]
  pad_id: int | None


def read_tokenizer(folder) -> TokenizerInfo:
  """Returns the tokenizer of a Hugging Face folder.

  Special ids are those of tokenizer_config.json; ids that config.json or
  generation_config.json also end a text with come after.

  Raises:
    WeightsError: no tokenizer.json, a file that cannot be read, a special token
      that the tokenizer does not know, an id that is none, or a chat template
      that is no text.
  """
  folder = Path(folder)
  path = folder / 'tokenizer.json'
  if not path.is_file():
    raise WeightsError(
      f'checkpoint {folder} has no tokenizer.json: copy it there'
    )
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # `tokenizers` raises bare Exception
    raise WeightsError(f'{path} cannot be read: {one_line(error)}') from None
  # Settings of whoever saved the file, which would cut or fill every text.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  optional = lambda name: (
    read_json(folder / name) if (folder / name).is_file() else {}
  )
  settings = optional('tokenizer_config.json')
  files = {n: optional(n) for n in ('config.json', 'generation_config.json')}
  size = files['config.json'].get('vocab_size')
  if type(size) is not int:
    size = vocab_size(tokenizer)

  def special(name):
    token = settings.get(f'{name}_token')
    token = token.get('content') if isinstance(token, dict) else token
    if token is None:
      return None
    where = f'{folder / "tokenizer_config.json"}: {name}_token'
    if not isinstance(token, str):
      raise WeightsError(
        f'{where}={show(token)} is given; allowed is the text of a token of '
        'tokenizer.json'
      )
    if (index := tokenizer.token_to_id(token)) is None:
      raise WeightsError(
        f'{where} {token!r} is not in tokenizer.json: name one that is'
      )
    check_id(f'{where} {token!r}, id', index, size)
    return index

  def ids(name):
    """Yields the ids of a special token, of one file after the other."""
    for file, values in files.items():
      given = values.get(key := f'{name}_token_id')
      for index in given if isinstance(given, list) else [given]:
        # Llama 1 says -1 for no padding.
        if index is None or (name == 'pad' and index == -1):
          continue
        check_id(f'{folder / file}: {key}', index, size, given)
        yield index

  ends = [special('eos'), *ids('eos')]
  # Of several files the last counts.
  last = lambda name: next(iter([*ids(name)][::-1]), None)
  one = lambda name: last(name) if special(name) is None else special(name)
  return TokenizerInfo(
    tokenizer=tokenizer,
    chat_template=_template(folder, settings),
    bos_id=one('bos'),
    eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
    pad_id=one('pad'),
  )


def vocab_size(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns a number that all ids of a tokenizer are below."""
  ids = tokenizer.get_vocab(with_added_tokens=True).values()
  return max(ids, default=-1) + 1


def check_id(where: str, index, size: int, given=None):
  """Raises WeightsError unless an index is that of a token.

  Args:
    where: the file and the key.
    index: what was given.
    size: of the vocabulary.
    given: the list that it stands in, for the message; None: it stands alone.
  """
  if type(index) is not int or not 0 <= index < size:
    raise WeightsError(
      f'{where}={show(index if given is None else given)} is given; allowed is '
      f'a token id, 0 to {size - 1}: mend it'
    )


def _template(folder: Path, settings: dict) -> str | None:
  path = folder / TEMPLATE_NAME
  if path.is_file():
    try:
      return path.read_text('utf-8')
    except ValueError as error:
      raise WeightsError(
        f'{path} is not UTF-8 ({one_line(error)}): save it as UTF-8'
      ) from None
  found = given = settings.get('chat_template')
  if isinstance(given, list):  # several, by name
    fits = all(
      isinstance(e, dict) and {'name', 'template'} <= e.keys() for e in given
    )
    found = None
    for entry in given if fits else ():
      if entry['name'] == 'default':
        found = entry['template']
  else:
    fits = True
  if not fits or not isinstance(found, str | None):
    raise WeightsError(
      f'{folder / "tokenizer_config.json"}: chat_template={show(given)} is '
      'given; allowed is text, or a list of {"name": text, "template": text}'
    )
  return found
