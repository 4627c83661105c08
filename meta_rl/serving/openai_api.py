"""What OpenAI's API asks for: pure functions of JSON (host).

`chat` and `completion` read the body of a request: an `Ask`, or an `ApiError`
that names the field, what was given and what is allowed. What is answered is in
meta_rl/serving/openai_replies.py.

Beside OpenAI's fields there are:

  max_thinking_tokens    tokens at which a thought is ended
  min_thinking_tokens    tokens before which the model may not end it
  stop_rule              when to stop thinking: meta_rl/stopping.py
  stop_threshold         of the rules 'confidence' and 'agreement'
  price_per_token        of the rule 'progress', J a thinking token
  check_every            thinking tokens between two looks of a rule
  greedy_answer          the answer takes the likeliest tokens
  return_confidence      the score at every look comes with the answer

What cannot be done is refused, and what changes nothing is let pass.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from meta_rl import checks

MAX_CHOICES = 32
MIN_TOP_P = 1e-6
# Stop strings, and characters of one: each piece of an answer is searched.
_MAX_STOPS, _MAX_STOP = 4, 1000
# Fields without effect here.
_IGNORED = ('user', 'metadata', 'store', 'service_tier', 'parallel_tool_calls')
_IGNORED += ('safety_identifier', 'prompt_cache_key', 'stream_options')
# Fields that are not done, each with the values that ask for nothing.
_REFUSED = {
  'logprobs': (None, False),
  'top_logprobs': (None, 0),
  'tools': (None, []),
  'tool_choice': (None, 'none', 'auto'),
  'functions': (None, []),
  'function_call': (None, 'none', 'auto'),
  'response_format': (None, {'type': 'text'}),
  'frequency_penalty': (None, 0),
  'presence_penalty': (None, 0),
  'logit_bias': (None, {}),
  'top_k': (None, -1, 0),
  'best_of': (None, 1),
  'echo': (None, False),
  'suffix': (None, ''),
  'modalities': (None, ['text']),
  'audio': (None,),
  'prediction': (None,),
  'verbosity': (None,),
  'web_search_options': (None,),
}
_INSTEAD = {'reasoning_effort': 'give max_thinking_tokens or a stop_rule'}
# What a request may ask for; a number of episodes is for comparisons.
RULES = ('budget', 'confidence', 'agreement', 'progress')

_SHARED = ('model', 'n', 'stream', 'stop', 'seed', 'temperature', 'top_p')
_SHARED += ('max_tokens', 'max_thinking_tokens', 'min_thinking_tokens')
_SHARED += ('stop_rule', 'stop_threshold', 'price_per_token', 'check_every')
_SHARED += ('greedy_answer', 'return_confidence')


class ApiError(Exception):
  """What is answered in place of a response, in one line."""

  def __init__(self, status, message, *, param=None, code=None, kind=None):
    """Keeps the parts of an error.

    Args:
      status: of HTTP.
      message: one line.
      param: the field that is wrong.
      code: OpenAI's, such as 'model_not_found'.
      kind: OpenAI's type; None: by the status.
    """
    super().__init__(message)
    kinds = {401: 'authentication_error', 429: 'rate_limit_error'}
    by_status = 'server_error' if status >= 500 else 'invalid_request_error'
    self.status, self.message = status, message
    self.body = {
      'error': {
        'message': message,
        'type': kind or kinds.get(status, by_status),
        'param': param,
        'code': code,
      }
    }


@dataclasses.dataclass(frozen=True)
class Ask:
  """A request as it was read; None: not given.

  Attributes:
    messages: of a chat; None for a completion.
    prompts: of a completion, texts or token ids.
    choices: responses to each prompt.
    stream, include_usage: in chunks, and with the usage behind them.
    stop: strings that end an answer.
    max_tokens, thinking_budget, min_thinking, temperature, top_p, seed, rule,
      threshold, every, greedy_answer: as in `tickets.Request`.
    scores: whether the scores are wanted.
  """

  messages: list[dict] | None
  prompts: list[str | list[int]]
  choices: int
  stream: bool
  include_usage: bool
  stop: tuple[str, ...]
  max_tokens: int | None
  thinking_budget: int | None
  min_thinking: int | None
  temperature: float | None
  top_p: float | None
  seed: int | None
  rule: str | None
  threshold: float | None
  every: int | None
  greedy_answer: bool | None
  scores: bool


def chat(body: Any, model: str) -> Ask:
  """Returns what the body of /v1/chat/completions asks for.

  Args:
    body: as JSON gives it.
    model: the name that is served.

  Raises:
    ApiError: 400, or 404 for another model.
  """
  own = ('messages', 'max_completion_tokens')
  _check_fields(body, own, model)
  first, second = (_whole(body, name, low=1) for name in ('max_tokens', own[1]))
  if None not in (first, second) and first != second:
    raise _bad(
      'max_tokens', body, 'the value of max_completion_tokens, or leave it out'
    )
  most = second if first is None else first
  messages = _messages(body.get('messages'))
  return _ask(body, messages=messages, prompts=[], max_tokens=most)


def completion(body: Any, model: str) -> Ask:
  """Returns what the body of /v1/completions asks for; as `chat`."""
  _check_fields(body, ('prompt',), model)
  prompts = _prompts(body.get('prompt'))
  most = _whole(body, 'max_tokens', low=1)
  return _ask(body, messages=None, prompts=prompts, max_tokens=most)


def _ask(body, **own) -> Ask:
  """Returns the fields that both endpoints have."""
  choices = _whole(body, 'n', low=1, high=MAX_CHOICES) or 1
  if choices * max(1, len(own['prompts'])) > MAX_CHOICES:
    raise ApiError(
      400,
      f'n={choices} for {len(own["prompts"])} prompts are given; allowed are '
      f'{MAX_CHOICES} responses a request: ask for fewer',
      param='n',
    )
  stream = _flag(body, 'stream') or False
  rule = _choice(body, 'stop_rule', RULES)
  return Ask(
    choices=choices,
    stream=stream,
    include_usage=_include_usage(body.get('stream_options'), stream),
    stop=_stop(body.get('stop')),
    thinking_budget=_whole(body, 'max_thinking_tokens', low=0),
    min_thinking=_whole(body, 'min_thinking_tokens', low=0),
    temperature=_number(body, 'temperature', low=0, high=2),
    top_p=_number(body, 'top_p', low=MIN_TOP_P, high=1),
    seed=_whole(body, 'seed', **checks.SEEDS),
    rule=rule,
    threshold=_threshold(body, rule),
    every=_whole(body, 'check_every', low=0),
    greedy_answer=_flag(body, 'greedy_answer'),
    scores=_flag(body, 'return_confidence') or False,
    **own,
  )


def _threshold(body, rule):
  """Returns the threshold of a rule, None if it is left to the server."""
  if body.get('price_per_token') is not None and rule != 'progress':
    raise ApiError(
      400,
      "price_per_token is of stop_rule='progress': give that, or leave it out",
      param='price_per_token',
    )
  if rule == 'progress':
    if body.get('stop_threshold') is not None:
      raise ApiError(
        400,
        "stop_rule='progress' stops at price_per_token: give that in place of "
        'stop_threshold',
        param='stop_threshold',
      )
    return _number(body, 'price_per_token', low=0, high=math.inf)
  if rule == 'agreement':
    return _whole(body, 'stop_threshold', low=1)
  if rule == 'confidence':
    return _number(body, 'stop_threshold', low=0, high=1)
  if body.get('stop_threshold') is not None:
    raise ApiError(
      400,
      f'stop_threshold is given with stop_rule={rule!r}: it is of '
      "'confidence' and 'agreement'; leave it out",
      param='stop_threshold',
    )
  return None


def _check_fields(body, own, model):
  """Raises ApiError for no object, another model, or a field not known."""
  if not isinstance(body, Mapping):
    raise ApiError(400, 'the body must be a JSON object')
  name = body.get('model')
  if not isinstance(name, str):
    raise _bad('model', body, f'the name of a model, here {model!r}')
  if name != model:
    raise unknown_model(name, model)
  for field, value in body.items():
    if field in _INSTEAD and value is not None:
      raise ApiError(
        400, f'{field} is not known here: {_INSTEAD[field]}', param=field
      )
    neutral = _REFUSED.get(field)
    if neutral is not None:
      if not any(_same(value, other) for other in neutral):
        raise ApiError(
          400,
          f'{field}={checks.show(value)} is not supported here: leave it out',
          param=field,
          code='unsupported_parameter',
        )
    elif field not in (*_SHARED, *own, *_IGNORED, *_INSTEAD):
      raise ApiError(
        400,
        f'the field {checks.show(field)} is not known: leave it out',
        param=str(field)[:100],
        code='unknown_parameter',
      )


def unknown_model(name: str, model: str) -> ApiError:
  """Returns what is answered to a request for another model."""
  message = f'the model {checks.show(name)} is not served here: take {model!r}'
  return ApiError(404, message, param='model', code='model_not_found')


def _same(value, other):
  """Returns whether two values are one; 0 and False are two."""
  number = isinstance(other, int) and not isinstance(other, bool)
  if number and isinstance(value, int | float) and not isinstance(value, bool):
    return value == other
  return type(value) is type(other) and value == other


def _bad(name, body, allowed, at='') -> ApiError:
  given = body.get(name) if isinstance(body, Mapping) else body
  return ApiError(
    400,
    f'{name}{at}={checks.show(given)} is given; allowed is {allowed}',
    param=name,
  )


def _whole(body, name, *, low, high=2**31 - 1) -> int | None:
  value = body.get(name)
  if value is None:
    return None
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole or not low <= value <= high:
    raise _bad(name, body, f'a whole number in {low}..{high}')
  return value


def _number(body, name, *, low, high) -> float | None:
  value = body.get(name)
  if value is None:
    return None
  end = '' if high == math.inf else f' and <= {high}'
  allowed = f'a number >= {low}{end}'
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise _bad(name, body, allowed)
  if not (low <= value <= high and abs(value) < 3e38):
    raise _bad(name, body, allowed)
  return float(value)


def _flag(body, name) -> bool | None:
  value = body.get(name)
  if value is not None and not isinstance(value, bool):
    raise _bad(name, body, 'true or false')
  return value


def _choice(body, name, allowed) -> str | None:
  value = body.get(name)
  if value is not None and value not in list(allowed):
    raise _bad(name, body, f'one of {list(allowed)}')
  return value


def _stop(value) -> tuple[str, ...]:
  """Returns the stop strings."""
  given = [value] if isinstance(value, str) else value
  if given is None:
    return ()
  texts = isinstance(given, list) and all(
    isinstance(text, str) and text for text in given
  )
  if not texts or len(given) > _MAX_STOPS or max(map(len, given)) > _MAX_STOP:
    raise _bad(
      'stop',
      {'stop': value},
      f'a text, or up to {_MAX_STOPS}, none empty or of over {_MAX_STOP} '
      'characters',
    )
  return tuple(given)


def _include_usage(options, stream) -> bool:
  if options is None:
    return False
  known = ('include_usage', 'include_obfuscation')
  flags = isinstance(options, Mapping) and all(
    name in known and isinstance(value, bool) for name, value in options.items()
  )
  if not flags or not stream:
    raise _bad(
      'stream_options',
      {'stream_options': options},
      '{"include_usage": true or false}, with "stream": true',
    )
  return options.get('include_usage', False)


def _messages(messages) -> list[dict]:
  """Returns the turns of a chat, each with a text."""
  if not isinstance(messages, list) or not messages:
    raise _bad(
      'messages', {'messages': messages}, 'a list of {"role", "content"}'
    )
  turns = []
  for index, message in enumerate(messages):
    role = message.get('role') if isinstance(message, Mapping) else None
    roles = ('system', 'developer', 'user', 'assistant')
    if role not in roles:
      raise _bad(
        'messages',
        message,
        f'an object whose "role" is one of {list(roles)}',
        f'[{index}]',
      )
    turns.append({'role': role, 'content': _content(message, index)})
  return turns


def _content(message, index) -> str:
  """Returns the text of a turn, which may come in parts."""
  content = message.get('content')
  if isinstance(content, str):
    return content
  parts = content if isinstance(content, list) else [None]
  texts = [
    part.get('text')
    for part in parts
    if isinstance(part, Mapping) and part.get('type') == 'text'
  ]
  whole = len(texts) == len(parts) and all(isinstance(t, str) for t in texts)
  if not whole or not texts:
    raise ApiError(
      400,
      f'messages[{index}].content={checks.show(content)} is given; allowed is '
      'a text, or a list of {"type": "text", "text"}',
      param='messages',
    )
  return ''.join(texts)


def _prompts(prompt) -> list[str | list[int]]:
  """Returns the prompts of a completion, one or several."""
  is_ids = lambda x: (
    isinstance(x, list) and len(x) > 0 and all(type(i) is int for i in x)
  )
  # Each list of ids is looked through once, and not if there are too many.
  one = isinstance(prompt, str)
  one |= isinstance(prompt, list) and prompt[:1] != [] and _is_number(prompt[0])
  several = [prompt] if one else prompt
  if isinstance(several, list) and len(several) > MAX_CHOICES:
    raise ApiError(
      400,
      f'{len(several):,} prompts are given; allowed are {MAX_CHOICES} a '
      'request: send fewer',
      param='prompt',
    )
  if (
    not isinstance(several, list)
    or not several
    or not all(isinstance(x, str) or is_ids(x) for x in several)
  ):
    raise _bad(
      'prompt', {'prompt': prompt}, 'a text, token ids, or a list of these'
    )
  return several


def _is_number(value):
  return isinstance(value, int | float)
