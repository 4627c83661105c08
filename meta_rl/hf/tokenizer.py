"""The tokenizer that a checkpoint brings, with its special ids and template."""

import dataclasses
from pathlib import Path

import tokenizers

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
    WeightsError: no tokenizer.json, one that cannot be read, or a special token
      that it does not know.
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
  model = optional('config.json') | optional('generation_config.json')

  def special(name):
    token = settings.get(f'{name}_token')
    token = token.get('content') if isinstance(token, dict) else token
    if token is None:
      return None
    if (index := tokenizer.token_to_id(token)) is None:
      raise WeightsError(
        f'{folder / "tokenizer_config.json"}: {name}_token {token!r} is not in '
        'tokenizer.json'
      )
    return index

  first = lambda *ids: next((i for i in ids if isinstance(i, int)), None)
  ends = [special('eos')]
  for name in ('config.json', 'generation_config.json'):
    ids = optional(name).get('eos_token_id')
    ends += ids if isinstance(ids, list) else [ids]
  return TokenizerInfo(
    tokenizer=tokenizer,
    chat_template=_template(folder, settings),
    bos_id=first(special('bos'), model.get('bos_token_id')),
    eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
    pad_id=first(special('pad'), model.get('pad_token_id')),
  )


def _template(folder: Path, settings: dict) -> str | None:
  path = folder / TEMPLATE_NAME
  if path.is_file():
    return path.read_text('utf-8')
  template = settings.get('chat_template')
  if isinstance(template, list):  # several, by name
    named = {entry['name']: entry['template'] for entry in template}
    template = named.get('default')
  return template
