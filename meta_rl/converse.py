"""Talking to a language model at the terminal, its thought on a budget.

    python -m meta_rl.generate --model=PATH
    python -m meta_rl.generate --model=PATH --prompt='What is 17 * 23?' \\
      --thinking_budget=256

The prompt is written by the checkpoint's own chat template; the answer comes as
it is being written. At the budget the thought is closed and an answer is asked
for, by the strings of `chat_template.Thinking`.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import jax

from meta_rl import (
  chat_template,
  checks,
  command_line,
  hf,
  models,
  streaming,
  text_tokenizer,
)
from meta_rl.types import Model, Params


@dataclasses.dataclass(frozen=True)
class Speaker:
  """A model that can be talked to.

  Attributes:
    model, params: the network.
    words: its tokenizer.
    template: its chat template.
    thinking: by which strings its thought begins and ends.
    options: temperature, top_p, top_k, max_new_tokens and thinking_budget
      (tokens; None: no limit) of `streaming.stream`.
    context: tokens of a conversation, at most; None: not known.
  """

  model: Model
  params: Params
  words: text_tokenizer.TextTokenizer
  template: chat_template.ChatTemplate
  thinking: chat_template.Thinking
  options: dict
  context: int | None = None


def load(path: str, *, thinking: str, dtype: str, **options) -> Speaker:
  """Returns the model of a checkpoint, ready to be talked to.

  Args:
    path: as in `hf.load_model`.
    thinking: a key of `chat_template.THINKING`; '': by whether the tokenizer
      knows '</think>'.
    dtype: of weights and activations.
    **options: of `Speaker`.

  Raises:
    ValueError: a checkpoint without a chat template, or one that cannot be
      read; a tokenizer of another model; a thinking budget where no token ends
      a thought.
  """
  words = text_tokenizer.load(path)
  if not words.chat_template:
    raise ValueError(
      f'--model={path} has no chat template: it is a base model, which goes on '
      'with a text and does not answer; take an instruct model.'
    )
  needed, size = words.needed_vocab_size, hf.model_config(path).vocab_size
  if size < needed:
    raise ValueError(
      f'--model={path}: its tokenizer has ids up to {needed - 1}; the '
      f'vocabulary of the model is 0..{size - 1}: put the tokenizer.json there '
      'that the model was trained with'
    )
  knows = words.tokenizer.token_to_id('</think>') is not None
  how = chat_template.thinking(thinking or ('r1' if knows else 'plain'))
  budget = options.get('thinking_budget')
  if budget is not None:
    try:
      words.id_of(how.close)
    except ValueError as error:
      raise ValueError(
        f'--thinking_budget={budget} with --thinking={how.name}: {error}; '
        'leave it out'
      ) from error
  config, params, _ = hf.load_model(
    path,
    tokenizer=False,
    dtype=dtype,
    param_dtype=dtype,
    # On a CPU slices of stacked weights are copies, anew for each token.
    scan_layers=jax.default_backend() != 'cpu',
  )
  return Speaker(
    model=models.make_model(config),
    params=params,
    words=words,
    template=chat_template.ChatTemplate(
      words.chat_template,
      special_tokens=words.special,
      name=f'the chat template of {path}',
    ),
    thinking=how,
    options=options,
    context=hf.context_length(path),
  )


def reply(
  speaker: Speaker, turns: Sequence[dict], key: jax.Array
) -> Iterator[str]:
  """Yields the answer to a conversation, piece by piece.

  Args:
    speaker: who answers.
    turns: {'role', 'content'} in order, the last one a user's.
    key: PRNG key.

  Raises:
    ValueError: more tokens than the model was made for.
  """
  own, words = speaker.thinking, speaker.words
  prompt = words.encode(own.opened(speaker.template.render(turns)))
  options = dict(speaker.options)
  if speaker.context is not None:
    room = speaker.context - len(prompt)
    if room < 1:
      raise ValueError(
        f'the conversation has {len(prompt):,} tokens by now, and the model '
        f'was made for {speaker.context:,}: begin a new one.'
      )
    options['max_new_tokens'] = min(options['max_new_tokens'], room)
  if options.get('thinking_budget') is not None:
    options['think_end_id'] = words.id_of(own.close)
    options['stop_ids'] = words.encode(own.forced_stop())
  ids, shown, ends = [], '', {words.eos_id, *words.end_ids}
  for new in streaming.stream(
    speaker.model,
    speaker.params,
    prompt,
    key,
    eos_id=words.eos_id,
    **options,
  ):
    last = next((n for n, i in enumerate(new) if i in ends), None)
    ids += new[:last]
    text, ended = chat_template.cut(words.decode(ids), own.stop_strings)
    if text.endswith('\ufffd') and not ended and last is None:
      continue  # a character whose last byte is still to come
    yield text[len(shown) :]
    shown = text
    if ended or last is not None:
      return


def converse(speaker: Speaker, *, prompt: str = '', system: str, seed: int):
  """Answers one prompt, or what is typed until the end of the input.

  Args:
    speaker: who answers.
    prompt: to answer alone; '': talk.
    system: text of a system turn; '': none.
    seed: of the sampling.
  """
  turns = [{'role': 'system', 'content': system}] if system else []
  checks.check_range('seed', seed, **checks.SEEDS)
  key = jax.random.key(seed)
  while True:
    if not prompt and sys.stdin.isatty():
      print('> ', end='', flush=True)
    text = prompt or sys.stdin.readline()
    if not text:
      return
    if not text.strip():
      continue
    turns.append({'role': 'user', 'content': text.strip()})
    pieces = []
    for piece in reply(speaker, turns, jax.random.fold_in(key, len(turns))):
      print(command_line.printable(piece), end='', flush=True)
      pieces.append(piece)
    print(flush=True)
    if prompt:
      return
    _, answer = speaker.thinking.split(''.join(pieces))
    # A thought is no part of what was said.
    said = ''.join(pieces) if answer is None else answer
    turns.append({'role': 'assistant', 'content': said.strip()})
