"""Supervised examples from chat JSONL files, loss on the completions alone."""

import os

import numpy as np
import tokenizers

from meta_rl.files import read_jsonl

Example = tuple[np.ndarray, np.ndarray]

ROLES = ('system', 'user', 'assistant', 'tool')
TEMPLATES = ('plain', 'chatml')
_END_OF_TURN = {'plain': '<eos>', 'chatml': '<|im_end|>'}


def chat_jsonl(
  path: str | os.PathLike,
  tokenizer: tokenizers.Tokenizer,
  *,
  template: str | None = None,
  eos_token: str | None = None,
  max_length: int | None = None,
) -> list[Example]:
  """Returns the examples of a file: one JSON object a line, blank lines apart.

  A line is {"messages": [{"role", "content"}, ...]}, with loss on every
  assistant turn and the token that ends it, or {"prompt", "completion"}, raw
  texts with loss on the completion and its end token.

  Texts are tokenized piece by piece, cut where the loss begins and ends, as
  generation will meet them: a prompt is never merged with its completion.

  Args:
    path: the file, UTF-8.
    tokenizer: an HF `tokenizers` tokenizer.
    template: of messages. 'chatml' writes <|im_start|>role, a line break, the
      content, <|im_end|> and a line break; 'plain' writes the contents and an
      end token after each assistant turn. None: 'chatml' if the tokenizer has
      <|im_start|>, else 'plain'.
    eos_token: the token that ends a completion; None: <|im_end|> for 'chatml'
      and <eos> for 'plain'.
    max_length: the most tokens of an example; None: no limit.

  Returns:
    (tokens i32[T], loss_mask bool[T]) for each line, as `data.pack` takes them.

  Raises:
    ValueError: naming the file and the line: not JSON, not of either form, no
      completion, text the tokenizer has no tokens for, or too long; or the
      tokenizer lacks a token that the template needs.
  """
  if template is None:
    has_chatml = tokenizer.token_to_id('<|im_start|>') is not None
    template = 'chatml' if has_chatml else 'plain'
  if template not in TEMPLATES:
    raise ValueError(f'template {template!r} must be one of {TEMPLATES}')
  eos_token = eos_token or _END_OF_TURN[template]
  needed = [eos_token] + ['<|im_start|>'] * (template == 'chatml')
  for token in needed:
    if tokenizer.token_to_id(token) is None:
      raise ValueError(
        f'the tokenizer has no token {token!r}, which template {template!r} '
        'needs: choose another template or eos_token'
      )

  def parse(number, record):
    del number
    example = _tokenize(_pieces(record, template, eos_token), tokenizer)
    if max_length is not None and len(example[0]) > max_length:
      raise ValueError(
        f'{len(example[0])} tokens, at most {max_length} are allowed: '
        'shorten it or raise max_length'
      )
    return example

  examples = read_jsonl(path, parse)
  if not examples:
    raise ValueError(f'{path} has no example: give one JSON object a line')
  return examples


def _pieces(record, template, eos_token) -> list[tuple[str, bool]]:
  """Returns the texts of an example, each with whether it counts."""
  if 'messages' in record:
    return _message_pieces(record['messages'], template, eos_token)
  if not {'prompt', 'completion'} <= set(record):
    raise ValueError(
      f'keys {sorted(record)}: give "messages", or "prompt" and "completion"'
    )
  prompt, completion = record['prompt'], record['completion']
  for name, text in (('prompt', prompt), ('completion', completion)):
    if not isinstance(text, str) or not text:
      raise ValueError(f'{name!r} must be a string that is not empty')
  return [(prompt, False), (completion, True), (eos_token, True)]


def _message_pieces(messages, template, eos_token) -> list[tuple[str, bool]]:
  if not isinstance(messages, list) or not messages:
    raise ValueError('"messages" must be a list that is not empty')
  pieces = []
  for index, message in enumerate(messages):
    if not isinstance(message, dict) or not {'role', 'content'} <= set(message):
      raise ValueError(f'message {index} needs a "role" and a "content"')
    role, content = message['role'], message['content']
    if role not in ROLES or not isinstance(content, str):
      raise ValueError(
        f'message {index} has role {role!r} and content of type '
        f'{type(content).__name__}: roles are {ROLES}, content is a string'
      )
    counts = role == 'assistant'
    if template == 'chatml':
      pieces.append((f'<|im_start|>{role}\n', False))
      pieces += [(content, counts), (eos_token, counts), ('\n', False)]
    else:
      pieces.append((content, counts))
      pieces += [(eos_token, True)] * counts
  if not any(counts for _, counts in pieces):
    raise ValueError('no message of the assistant: there is nothing to learn')
  if pieces[0][1]:
    raise ValueError("the first message is the assistant's: give a prompt")
  return pieces


def _tokenize(pieces, tokenizer) -> Example:
  ids, mask = [], []
  for text, counts in pieces:
    try:
      new = tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:  # `tokenizers` raises bare Exception
      raise ValueError(f'cannot tokenize {text[:60]!r}: {error}') from error
    ids += new
    mask += [counts] * len(new)
  if not mask or mask[0]:
    raise ValueError('the prompt has no tokens: give one before the completion')
  return np.asarray(ids, np.int32), np.asarray(mask, bool)
