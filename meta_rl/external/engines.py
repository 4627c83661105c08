"""Rows of what vLLM and SGLang return; neither engine is needed here.

    rows += from_vllm(output)                 of LLM.generate and LLM.chat
    rows += from_openai(response)             of `vllm serve`, as JSON
    rows += from_sglang(output, prompt_ids)   of Engine.generate and /generate

Each is a few lines over the row of meta_rl/external/rows.py: ids, and the
log-prob of each id that was drawn. Ask for log-probs of what was drawn *from*:
vLLM's are those of the logits as they came unless it is started with
`logprobs_mode='processed_logprobs'` (`--logprobs-mode`), and SGLang's those
behind the temperature unless SGLANG_RETURN_ORIGINAL_LOGPROB is set. Top-k and
top-p of another engine should be those of `config.rollout`.

An engine that cuts a thought off at a budget and goes on from forced tokens
returns two outputs: join them, with null log-probs at what was forced.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from meta_rl.files import one_line

Row = dict[str, Any]
_ROUNDING = 1e-3  # nats


def from_vllm(output: Any, **more: Any) -> list[Row]:
  """Returns the rows of one prompt: n samples of a `RequestOutput`.

  Sample with `SamplingParams(logprobs=0)`: the drawn token's alone. Its key in
  each dict of `logprobs` is the token that was drawn.

  Args:
    output: a `RequestOutput`, or a mapping with its fields.
    **more: keys of all rows, such as reward and question.

  Raises:
    ValueError: one line; a field is missing, or the samples have no log-probs.
  """
  rows = []
  for sample in _field(output, 'outputs', 'vLLM'):
    ids = list(_field(sample, 'token_ids', 'vLLM'))
    dicts = _given(sample, 'logprobs')
    if dicts is None:
      raise ValueError(
        'vLLM: the output has no logprobs: sample with '
        'SamplingParams(logprobs=0), or write rows without log_probs'
      )
    _check_size('vLLM', 'logprobs', dicts, ids)
    chosen = [_at(each, token) for each, token in zip(dicts, ids)]
    prompt = list(_field(output, 'prompt_token_ids', 'vLLM'))
    rows.append(_row(prompt, ids, chosen, _given(sample, 'text'), more))
  return rows


def from_openai(
  response: Mapping[str, Any],
  prompt_ids: Sequence[int] | None = None,
  **more: Any,
) -> list[Row]:
  """Returns the rows of one prompt: choices of vLLM's OpenAI-compatible API.

  Of /v1/chat/completions and /v1/completions, asked with `return_token_ids` and
  `logprobs`: texts of tokens do not say which ids they are.

  Args:
    response: the JSON of the answer.
    prompt_ids: of the prompt, for servers that do not return them.
    **more: keys of all rows, such as reward and question.

  Raises:
    ValueError: one line; ids or log-probs are missing, or not one a token.
  """
  rows = []
  for choice in _field(response, 'choices', 'OpenAI API'):
    ids = _given(choice, 'token_ids')
    prompt = prompt_ids
    for place in (choice, response):
      prompt = _given(place, 'prompt_token_ids') if prompt is None else prompt
    if ids is None or prompt is None:
      missing = 'token_ids' if ids is None else 'prompt_token_ids'
      raise ValueError(
        f'OpenAI API: the answer has no {missing}: ask with '
        '"return_token_ids": true (vLLM 0.10.2 and later)'
      )
    found = _given(choice, 'logprobs') or {}
    chosen = _given(found, 'token_logprobs')
    if chosen is None and _given(found, 'content') is not None:
      chosen = [_given(each, 'logprob') for each in _given(found, 'content')]
    if chosen is None:
      raise ValueError(
        'OpenAI API: the answer has no logprobs: ask with "logprobs": true '
        '(chat) or "logprobs": 0 (completions), or write rows without log_probs'
      )
    _check_size('OpenAI API', 'logprobs', chosen, ids)
    text = _given(_given(choice, 'message') or choice, 'text', 'content')
    rows.append(_row(prompt, ids, chosen, text, more))
  return rows


def from_sglang(
  output: Mapping[str, Any] | Sequence[Mapping[str, Any]],
  prompt_ids: Sequence[int],
  **more: Any,
) -> list[Row]:
  """Returns the rows of one prompt, sampled with `return_logprob=True`.

  The ids are those beside the log-probs: (log-prob, id, text or None) each.

  Args:
    output: of one sample, or a list of those of n.
    prompt_ids: the `input_ids` that were sent.
    **more: keys of all rows, such as reward and question.

  Raises:
    ValueError: one line; there are no log-probs.
  """
  if prompt_ids is None:
    raise ValueError('SGLang: prompt_ids is None: give the input_ids sent')
  rows = []
  for sample in [output] if isinstance(output, Mapping) else output:
    found = _given(
      _field(sample, 'meta_info', 'SGLang'), 'output_token_logprobs'
    )
    if not found:
      raise ValueError(
        'SGLang: meta_info has no output_token_logprobs: sample with '
        'return_logprob=True'
      )
    chosen, ids = zip(*(each[:2] for each in found))
    rows.append(_row(prompt_ids, ids, chosen, _given(sample, 'text'), more))
  return rows


def _row(prompt_ids, ids, log_probs, text, more) -> Row:
  row = {'prompt_ids': [int(i) for i in prompt_ids]}
  row['response_ids'] = [int(i) for i in ids]
  # Rounding may put a sure token a little above 0; more is for read_rows to
  # refuse.
  log_probs = [
    x and (0.0 if 0 < x < _ROUNDING else float(x)) for x in log_probs
  ]
  row['log_probs'] = log_probs
  if text is not None:
    row['response'] = text  # for people: the ids count
  return row | more


def _at(dicts, token: int) -> float:
  """Returns the log-prob of a token in one of vLLM's dicts, {id: Logprob}."""
  found = dicts.get(token, dicts.get(str(token)))  # JSON has no other keys
  if found is None:
    raise ValueError(
      f'vLLM: logprobs lack token {token}, which was drawn: '
      f'{one_line(repr(list(dicts)), 60)} are given'
    )
  value = _given(found, 'logprob')
  return found if value is None else value


def _given(owner: Any, *names: str) -> Any:
  """Returns the first field of a mapping or object that is not None."""
  for name in names:
    value = (
      owner.get(name)
      if isinstance(owner, Mapping)
      else getattr(owner, name, None)
    )
    if value is not None:
      return value
  return None


def _vars(owner: Any) -> Mapping[str, Any]:
  return getattr(owner, '__dict__', {})


def _field(owner: Any, name: str, engine: str) -> Any:
  value = _given(owner, name)
  if value is None:
    fields = owner if isinstance(owner, Mapping) else _vars(owner)
    has = sorted(fields) or f'a {type(owner).__name__}'
    raise ValueError(
      f'{engine}: there is no {name} in {one_line(str(has), 120)}: give what '
      'the engine returned for one prompt'
    )
  return value


def _check_size(engine: str, name: str, given, ids):
  if len(given) != len(ids):
    raise ValueError(
      f'{engine}: {name} has {len(given)} entries for {len(ids)} tokens: give '
      'an answer as it came, unstreamed'
    )
