"""Tokenizers of language models, with the few ids that a text task needs.

    load('/models/Qwen2.5-0.5B-Instruct')    of a checkpoint (meta_rl/hf)
    load('bytes')                            every byte a token, for trials

The tokenizer itself is HF `tokenizers`, the checkpoint's own.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from meta_rl import chat_template, hf, segments, stops

BYTES = 'bytes'
# Of the byte tokenizer; each is one token.
_SPECIAL = ('<pad>', '<eos>', '<|im_start|>', '<|im_end|>', '<think>')
_SPECIAL += ('</think>',)
_CHATML = '<|im_start|><|im_end|>'
# How '\n' is written inside a token of a byte-level vocabulary.
_LINE_BREAKS = ('\n', 'Ċ', '<0x0A>')


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
  """A tokenizer and what is known of it.

  Attributes:
    tokenizer: of HF `tokenizers`.
    eos_id: what ends an answer: the token that the chat template puts behind a
      turn, where several end a text.
    pad_id: fills what is no token; any id will do.
    bos_id: what every prompt begins with, unless its template says so itself;
      None: nothing.
    chat_template: Jinja source, '' for a model without one.
    special: {name: text} of tokenizer_config.json, such as bos_token.
    end_ids: tokens besides eos_id that end a text too.
  """

  tokenizer: tokenizers.Tokenizer
  eos_id: int
  pad_id: int
  bos_id: int | None = None
  chat_template: str = ''
  special: dict[str, str] = dataclasses.field(default_factory=dict)
  end_ids: tuple[int, ...] = ()

  @property
  def vocab_size(self) -> int:
    """Token ids are below it."""
    return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

  @property
  def needed_vocab_size(self) -> int:
    """Tokens that a model must have for whatever a text or a chat may hold.

    A special token counts where something here writes it: Gemma 3's tokenizer
    has one for images that its model of text alone lacks.
    """
    added = self.tokenizer.get_added_tokens_decoder()
    written = self.chat_template + _CHATML
    own = {self.eos_id, self.pad_id, self.bos_id, *self.end_ids}
    unused = {
      index
      for index, token in added.items()
      if token.special and token.content not in written and index not in own
    }
    ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
    return max(set(ids) - unused) + 1

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, nothing added to it."""
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def encode_prompt(self, text: str) -> list[int]:
    """Returns the ids of a prompt, the bos in front where there is one."""
    ids = self.encode(text)
    bos = [] if self.bos_id is None else [self.bos_id]
    return ids if ids[:1] == bos else bos + ids

  def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
    """Returns the text of ids.

    Args:
      ids: token ids; those of no token have no text.
      special: with the texts of special tokens, such as end-of-text.
    """
    # `tokenizers` passes over ids that it lacks; a vocabulary may have gaps.
    known = [int(i) for i in ids if int(i) >= 0]
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
        'thinking (task.close) must be one token, as #### often is'
      )
    return ids[0]

  def stop_table(self, stop_strings: Sequence[str]) -> stops.StopTable | None:
    """Returns where answers of these tokens complete a stop string.

    Exact for byte-level vocabularies, however a stop string is spelled. Others
    (SentencePiece's) are taken token by token too: a decoder that joins or
    drops more than that, such as the first space of a text, is not followed.
    Special tokens have no text, as in what is graded. What is missed ends
    nothing early; it is cut off all the same before an answer is graded.

    Args:
      stop_strings: none of them empty.

    Returns:
      The table, of `end_ids` too; None where there is neither.
    """
    if not stop_strings and not self.end_ids:
      return None
    special = self.tokenizer.get_added_tokens_decoder()
    dropped = {i for i, token in special.items() if token.special}
    texts = segments.token_bytes(self.tokenizer, self.vocab_size)
    texts = [b'' if i in dropped else text for i, text in enumerate(texts)]
    return stops.make_table(texts, stop_strings, self.end_ids)

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
    path: as in `hf.find`, or 'bytes'.

  Raises:
    ValueError: there is none, or a file that cannot be read.
  """
  if path == BYTES:
    return _bytes()
  info = hf.model_tokenizer(path)
  if not info.eos_ids:
    raise ValueError(
      f'{path} does not say which token ends a text: put eos_token into its '
      'tokenizer_config.json.'
    )
  name = info.tokenizer.id_to_token
  ids = {'bos_token': info.bos_id, 'pad_token': info.pad_id}
  ids['eos_token'] = info.eos_ids[0]
  special = {key: name(i) for key, i in ids.items() if i is not None}
  eos_id = _turn_end(info, special)
  return TextTokenizer(
    info.tokenizer,
    eos_id=eos_id,
    end_ids=tuple(i for i in info.eos_ids if i != eos_id),
    pad_id=info.pad_id or 0,
    bos_id=info.bos_id if _begins(info) else None,
    chat_template=info.chat_template or '',
    special=special,
  )


def _turn_end(info, special) -> int:
  """Returns which of the tokens that end a text ends a turn.

  Gemma's tokenizer calls <eos> what ends a text, and its turns end with
  <end_of_turn>: generation_config.json has both.
  """
  if len(info.eos_ids) < 2 or not info.chat_template:
    return info.eos_ids[0]
  said = 'The answer.'
  turns = [{'role': 'user', 'content': '?'}]
  turns += [{'role': 'assistant', 'content': said}]
  try:
    template = chat_template.ChatTemplate(
      info.chat_template, special_tokens=special
    )
    text = template.render(turns, add_generation_prompt=False)
  except chat_template.ChatTemplateError:
    return info.eos_ids[0]  # the task says so where the template is used
  _, _, behind = text.rpartition(said)
  places = {}
  for index in info.eos_ids:
    place = behind.find(info.tokenizer.id_to_token(index) or '\0')
    if place >= 0:
      places.setdefault(place, index)
  return places[min(places)] if places else info.eos_ids[0]


def _begins(info) -> bool:
  """Returns whether the tokenizer itself puts its bos before a text."""
  ids = info.tokenizer.encode('a').ids
  return info.bos_id is not None and ids[:1] == [info.bos_id]


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
