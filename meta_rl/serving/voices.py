"""A policy that is served: its tokens as text, in and out (host).

    voice = of_checkpoint(PATH)          a language model and its chat template
    voice = of_policy(config, params)    a token policy: a run, a config's start

What comes back is written in meta_rl/serving/writer.py.
"""

import dataclasses
import math
import secrets
from collections.abc import Callable, Iterable, Sequence

from meta_rl import setup_run, stopping
from meta_rl.serving.slots import Marks
from meta_rl.serving.tickets import Request
from meta_rl.stop_rules import StopRules
from meta_rl.types import Model, Params

# Tokens of a probe's answer, of a language model.
ANSWER_LENGTH = 64
# Thinking tokens between two looks of a rule at open-ended text.
LOOK_EVERY = 256
# Of a text a token, at most: some stand for that many spaces.
CHARACTERS = 64


@dataclasses.dataclass(frozen=True)
class Voice:
  """A model and how it is spoken to.

  Attributes:
    model, params: the network.
    marks: tokens that steer it.
    chat_prompt: messages -> token ids, the last of which the response follows;
      raises ValueError for what it cannot write.
    text_prompt: text -> token ids, the same of a completion.
    decode: token ids -> text.
    vocab_size: ids are below it.
    context: tokens it was made for, prompt and response; None: not known.
    defaults: fields of `Request` that requests may leave out.
    rules: calibrated thresholds, and the head of the rule 'progress'; None:
      there are none.
  """

  model: Model
  params: Params
  marks: Marks
  chat_prompt: Callable[[Sequence[dict]], list[int]]
  text_prompt: Callable[[str], list[int]]
  decode: Callable[[Iterable[int]], str]
  vocab_size: int
  context: int | None = None
  defaults: dict = dataclasses.field(default_factory=dict)
  rules: StopRules | None = None

  @property
  def head(self) -> stopping.ProgressHead | None:
    """The head of the rule 'progress', of a policy that may stop by itself."""
    return None if self.rules is None else self.rules.heads.get('own')


def of_checkpoint(speaker, vocab_size: int) -> Voice:
  """Returns the voice of a language model.

  Args:
    speaker: of `converse.load`.
    vocab_size: of the model.
  """
  own, words, options = speaker.thinking, speaker.words, speaker.options
  try:
    close = words.id_of(own.close)
  except ValueError:
    close = None  # it answers, and no thought of it can be ended

  def chat_prompt(messages):
    turns = [
      turn | {'role': 'system'} if turn['role'] == 'developer' else turn
      for turn in messages
    ]
    return words.encode(own.opened(speaker.template.render(turns)))

  return Voice(
    model=speaker.model,
    params=speaker.params,
    marks=Marks(
      end_ids=(words.eos_id, *words.end_ids),
      think_end_id=close,
      stop_ids=() if close is None else tuple(words.encode(own.forced_stop())),
      answer_length=ANSWER_LENGTH,
      stop_table=words.stop_table(own.stop_strings),
    ),
    chat_prompt=chat_prompt,
    text_prompt=words.encode_prompt,
    decode=words.decode,
    vocab_size=vocab_size,
    context=speaker.context,
    defaults={
      'max_new_tokens': options['max_new_tokens'],
      'temperature': options['temperature'],
      'top_p': options['top_p'] or 1.0,
      'thinking_budget': options['thinking_budget'],
      'every': LOOK_EVERY,
    },
  )


def of_policy(config, params) -> Voice:
  """Returns the voice of a policy whose task knows its tokens.

  Args:
    config: of its run.
    params: the policy.

  Raises:
    ValueError: a policy that an environment speaks to, or whose sampling the
      engine does not have.
  """
  kit, task = setup_run.task_kit(config), setup_run.make_task(config)
  if task.observe is not None:
    raise ValueError(
      f'the environment of task {task.name!r} speaks between the tokens of a '
      'policy, and requests have none: serve the policy of another task.'
    )
  if config.rollout.top_k:
    raise ValueError(
      f'rollout.top_k={config.rollout.top_k} is not served: set it to None, or '
      'take rollout.top_p.'
    )

  def text_prompt(text):
    return list(kit.encode(text, is_prompt=True))

  def chat_prompt(messages):
    if kit.render_chat is not None:
      return text_prompt(kit.render_chat(messages, add_generation_prompt=True))
    if len(messages) != 1 or messages[0]['role'] != 'user':
      raise ValueError(
        f'{len(messages)} messages are given: task {task.name!r} has no '
        'conversations; give one of the user, the whole prompt'
      )
    return text_prompt(messages[0]['content'])

  budget = config.rollout.thinking_budget
  return Voice(
    model=setup_run.make_model(config, task),
    params=params,
    marks=Marks(
      end_ids=task.end_ids,
      think_end_id=task.think_end_id,
      stop_ids=tuple(task.stop_ids),
      delimiter_ids=tuple(task.delimiter_ids),
      answer_length=task.answer_length,
      stop_table=task.stop_table,
    ),
    chat_prompt=chat_prompt,
    text_prompt=text_prompt,
    decode=kit.decode,
    vocab_size=setup_run.model_config(config).vocab_size,
    defaults={
      'max_new_tokens': budget + len(task.stop_ids) + task.answer_length,
      'temperature': float(config.rollout.temperature),
      'top_p': float(config.rollout.top_p or 1.0),
      'thinking_budget': budget,
    },
  )


def encode(voice: Voice, prompt, length: int = 2**31) -> tuple[int, ...]:
  """Returns the token ids of a prompt.

  Args:
    voice: whose.
    prompt: messages, a text, or token ids.
    length: tokens that it may have; what is far longer is not tokenized.

  Raises:
    ValueError: what has no tokens, ids beyond the vocabulary, or what is too
      long by far.
  """
  _check_size(prompt, length)
  if isinstance(prompt, str):
    ids = _encoded(voice.text_prompt, prompt)
  elif isinstance(prompt[0], dict):
    ids = _encoded(voice.chat_prompt, prompt)
  else:
    ids = prompt
  if not ids:
    raise ValueError('the prompt has no tokens: give one')
  # Of texts too: a tokenizer may have tokens that its model lacks.
  if not all(0 <= index < voice.vocab_size for index in ids):
    raise ValueError(
      f'the prompt has token ids outside 0..{voice.vocab_size - 1}, which the '
      'model does not know: leave them out'
    )
  return tuple(map(int, ids))


def _check_size(prompt, length):
  """Raises ValueError for what is too long, whatever its tokens are."""
  allowed = CHARACTERS * length
  if isinstance(prompt, str):
    size, what = len(prompt), 'characters'
  elif isinstance(prompt[0], dict):
    # A turn takes a token or more of its own.
    size = sum(CHARACTERS + len(turn['content']) for turn in prompt)
    what = 'characters and turns'
  else:
    size, what, allowed = len(prompt), 'tokens', length
  if size > allowed:
    raise ValueError(
      f'the prompt has {size:,} {what}, and a prompt and its response may have '
      f'{length:,} tokens in all: shorten it'
    )


def _encoded(write, given):
  """Returns what `write` makes of a text; ValueError for whatever it raises."""
  try:
    return write(given)
  except ValueError:
    raise
  except Exception as error:  # `tokenizers` raises bare Exception
    raise ValueError(f'the prompt cannot be tokenized: {error}') from error


def request(voice: Voice, prompt: tuple[int, ...], length: int, ask) -> Request:
  """Returns the request of one response, what is left out filled in.

  Where the server's defaults and the room do not fit each other, the room
  decides: the response gets what is left, its thought what an answer leaves.

  Args:
    voice: whose defaults.
    prompt: token ids.
    length: tokens of a prompt and its response in the engine, at most.
    ask: an `openai_api.Ask`.

  Raises:
    ValueError: a rule without a threshold, or looks at other places than the
      calibrated one had.
  """
  marks, given = voice.marks, dict(voice.defaults)
  most = ask.max_tokens
  if most is None:
    room = min(length + 1, voice.context or length + 1) - len(prompt)
    most = max(1, min(given['max_new_tokens'], room))
  elif voice.context is not None and len(prompt) + most > voice.context:
    raise ValueError(
      f'the prompt has {len(prompt):,} tokens and {most:,} are asked for, and '
      f'the model was made for {voice.context:,} in all: shorten the prompt or '
      'lower max_tokens'
    )
  budget = ask.thinking_budget
  if budget is None and given.get('thinking_budget') is not None:
    spare = most - len(marks.stop_ids) - marks.answer_length
    budget = max(0, min(given['thinking_budget'], spare))
    if budget + len(marks.stop_ids) >= most:
      budget = None
  rule, threshold, max_looks = _rule(ask, voice.rules)
  first = lambda value, other: other if value is None else value
  return Request(
    prompt=prompt,
    max_new_tokens=most,
    temperature=first(ask.temperature, given['temperature']),
    top_p=first(ask.top_p, given['top_p']),
    seed=secrets.randbits(32) if ask.seed is None else ask.seed,
    thinking_budget=budget,
    min_thinking=ask.min_thinking or 0,
    rule=rule,
    threshold=threshold,
    every=first(ask.every, given.get('every', 0)),
    max_looks=max_looks,
    # Where a rule only looks, the response is the same as without it.
    greedy_answer=first(
      ask.greedy_answer, abs(threshold) < math.inf and rule != 'budget'
    ),
  )


def _rule(ask, rules) -> tuple[str, float, int | None]:
  """Returns the rule of a request, a threshold, and how many looks it has.

  A threshold that is left out is the calibrated one, with the looks for which
  it is safe. Where there is none, and scores are asked for, the rule only
  looks.
  """
  rule, threshold = ask.rule or 'budget', ask.threshold
  if rule == 'budget':
    return ('confidence', math.inf, None) if ask.scores else (rule, 0.0, None)
  name = 'price_per_token' if rule == 'progress' else 'stop_threshold'
  if threshold is None and rules is not None:
    try:
      threshold, looks = rules.threshold(rule), rules.about['max_looks']
    except ValueError:
      if not ask.scores:
        raise
    else:
      if ask.every is not None:
        raise ValueError(
          f'check_every={ask.every} is given, and the calibrated threshold of '
          f'stop_rule={rule!r} is for looks behind episodes alone: give {name} '
          'too, or leave check_every out'
        )
      return rule, threshold, looks
  if threshold is not None:
    return rule, threshold, None
  if ask.scores:
    return rule, -math.inf if rule == 'progress' else math.inf, None
  raise ValueError(
    f'stop_rule={rule!r} needs {name}: this policy has none that is '
    'calibrated; without one give return_confidence=true, and the rule only '
    'looks'
  )
