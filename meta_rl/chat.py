"""Supervised examples from chat JSONL files, loss on the completions alone."""

import os
from collections.abc import Callable

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
  render: Callable[..., str] | None = None,
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
    render: `(messages, add_generation_prompt) -> str`, a checkpoint's own chat
      template, which messages are written by in place of `template`.
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
  chatml = template == 'chatml' and render is None
  needed = [eos_token] + ['<|im_start|>'] * chatml
  for token in needed:
    if tokenizer.token_to_id(token) is None:
      raise ValueError(
        f'the tokenizer has no token {token!r}, which template {template!r} '
        'needs: choose another template or eos_token'
        if render is None
        else f'the tokenizer has no token {token!r}: choose another eos_token'
      )

  def parse(number, record):
    del number
    pieces = _pieces(record, template, eos_token, render)
    example = _tokenize(pieces, tokenizer)
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


def _pieces(record, template, eos_token, render) -> list[tuple[str, bool]]:
  """Returns the texts of an example, each with whether it counts."""
  if 'messages' in record:
    _check_messages(record['messages'])
    if render is not None:
      return _rendered_pieces(record['messages'], render)
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


def _check_messages(messages):
  if not isinstance(messages, list) or not messages:
    raise ValueError('"messages" must be a list that is not empty')
  for index, message in enumerate(messages):
    if not isinstance(message, dict) or not {'role', 'content'} <= set(message):
      raise ValueError(f'message {index} needs a "role" and a "content"')
    role, content = message['role'], message['content']
    if role not in ROLES or not isinstance(content, str):
      raise ValueError(
        f'message {index} has role {role!r} and content of type '
        f'{type(content).__name__}: roles are {ROLES}, content is a string'
      )
  roles = [message['role'] for message in messages]
  if 'assistant' not in roles:
    raise ValueError('no message of the assistant: there is nothing to learn')
  if roles[0] == 'assistant':
    raise ValueError("the first message is the assistant's: give a prompt")


def _rendered_pieces(messages, render) -> list[tuple[str, bool]]:
  """Returns the pieces that a template makes, what each turn adds at a time.

  A turn counts to its end token; a line break behind that does not.
  """
  pieces, done = [], ''
  for index, message in enumerate(messages):
    if message['role'] != 'assistant':
      continue
    begun = render(messages[:index], add_generation_prompt=True)
    whole = render(messages[: index + 1], add_generation_prompt=False)
    turn = whole[len(begun) :]
    grown = begun.startswith(done) and whole.startswith(begun)
    if not grown or message['content'].strip() not in turn:
      raise ValueError(
        f'message {index}: the chat template of the checkpoint does not write '
        'it whole behind what a generation begins with (some leave thoughts '
        'out); give "prompt" and "completion" texts'
      )
    counts = turn.rstrip()
    pieces.append((begun[len(done) :], False))
    pieces += [(counts, True), (turn[len(counts) :], False)]
    done = whole
  return pieces


def _message_pieces(messages, template, eos_token) -> list[tuple[str, bool]]:
  pieces = []
  for message in messages:
    role, content = message['role'], message['content']
    counts = role == 'assistant'
    if template == 'chatml':
      pieces.append((f'<|im_start|>{role}\n', False))
      pieces += [(content, counts), (eos_token, counts), ('\n', False)]
    else:
      pieces.append((content, counts))
      pieces += [(eos_token, True)] * counts
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
