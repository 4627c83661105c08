"""What OpenAI's API asks for, read and refused; no server is needed."""

import json
import math

import pytest

from meta_rl.serving import openai_api
from meta_rl.serving.openai_api import ApiError

TURNS = [{'role': 'user', 'content': 'Hi'}]


def chat(**changes):
  body = {'model': 'm', 'messages': TURNS} | changes
  return openai_api.chat(body, 'm')


def completion(**changes):
  body = {'model': 'm', 'prompt': 'Hi'} | changes
  return openai_api.completion(body, 'm')


def test_defaults_are_left_open():
  ask = chat()
  assert ask.messages == TURNS
  assert ask.choices == 1
  assert ask.stop == ()
  flags = ask.stream, ask.include_usage, ask.scores
  assert flags == (False, False, False)
  open_ones = ('max_tokens', 'thinking_budget', 'min_thinking', 'temperature')
  open_ones += ('top_p', 'seed', 'rule', 'threshold', 'every', 'greedy_answer')
  assert {getattr(ask, name) for name in open_ones} == {None}


def test_all_fields():
  ask = chat(
    n=2,
    stream=True,
    stream_options={'include_usage': True},
    stop=['a', 'b'],
    max_completion_tokens=9,
    max_thinking_tokens=0,
    min_thinking_tokens=3,
    temperature=0,
    top_p=0.5,
    seed=7,
    stop_rule='confidence',
    stop_threshold=1,
    check_every=4,
    greedy_answer=False,
    return_confidence=True,
  )
  assert ask.choices == 2
  assert ask.stream
  assert ask.include_usage
  assert ask.stop == ('a', 'b')
  assert ask.max_tokens == 9
  assert ask.thinking_budget == 0
  assert ask.min_thinking == 3
  assert (ask.temperature, ask.top_p, ask.seed) == (0.0, 0.5, 7)
  assert (ask.rule, ask.threshold, ask.every) == ('confidence', 1.0, 4)
  assert ask.greedy_answer is False
  assert ask.scores


def test_thresholds_of_each_rule():
  assert chat(stop_rule='agreement', stop_threshold=3).threshold == 3
  assert chat(stop_rule='progress', price_per_token=0.001).threshold == 0.001
  assert chat(stop_rule='confidence').threshold is None


def test_null_is_as_if_it_were_left_out():
  names = ('max_tokens', 'temperature', 'stop', 'seed', 'stream', 'n', 'tools')
  assert chat(**dict.fromkeys(names)) == chat()


def test_fields_without_effect_pass():
  ask = chat(
    user='u',
    metadata={'a': 'b'},
    tools=[],
    tool_choice='auto',
    frequency_penalty=0.0,
    presence_penalty=0,
    logit_bias={},
    logprobs=False,
    response_format={'type': 'text'},
    store=False,
    reasoning_effort=None,
  )
  assert ask == chat()


def test_turns_in_parts():
  parts = [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]
  turns = [
    {'role': 'system', 'content': 's'},
    {'role': 'user', 'content': parts, 'name': 'me'},
  ]
  assert chat(messages=turns).messages[1] == {'role': 'user', 'content': 'ab'}


def test_prompts_of_completions():
  assert completion().prompts == ['Hi']
  assert completion(prompt=['a', 'b']).prompts == ['a', 'b']
  assert completion(prompt=[1, 2]).prompts == [[1, 2]]
  assert completion(prompt=[[1], [2, 3]]).prompts == [[1], [2, 3]]
  assert completion(prompt='').prompts == ['']  # the tokenizer decides


HUGE = 10**400


@pytest.mark.parametrize(
  'changes, param, message',
  [
    ({'model': None}, 'model', "model=None is given; .* here 'm'"),
    ({'messages': []}, 'messages', 'a list of'),
    ({'messages': 'Hi'}, 'messages', "messages='Hi' is given"),
    ({'messages': [1]}, 'messages', r'messages\[0\]=1 is given'),
    ({'messages': [{'role': 'x', 'content': ''}]}, 'messages', r"'user'"),
    ({'messages': [{'role': 'user'}]}, 'messages', r'\[0\].content=None'),
    (
      {'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]},
      'messages',
      'allowed is a text',
    ),
    ({'n': 0}, 'n', r'n=0 is given; allowed is a whole number in 1\.\.32'),
    ({'n': 33}, 'n', 'n=33'),
    ({'n': True}, 'n', 'n=True'),
    ({'n': 1.5}, 'n', r'n=1\.5'),
    ({'stream': 'yes'}, 'stream', 'true or false'),
    ({'max_tokens': 0}, 'max_tokens', 'max_tokens=0'),
    ({'max_tokens': HUGE}, 'max_tokens', r'1\.\.2147483647'),
    (
      {'max_tokens': 3, 'max_completion_tokens': 4},
      'max_tokens',
      'max_completion_tokens',
    ),
    ({'temperature': -1}, 'temperature', 'a number >= 0 and <= 2'),
    ({'temperature': 2.1}, 'temperature', r'2\.1'),
    ({'temperature': math.nan}, 'temperature', 'nan'),
    ({'temperature': '1'}, 'temperature', "'1'"),
    ({'temperature': HUGE}, 'temperature', 'a number'),
    ({'top_p': 0}, 'top_p', 'a number >= 1e-06 and <= 1'),
    ({'top_p': 1e-40}, 'top_p', 'top_p=1e-40 is given'),
    ({'seed': -1}, 'seed', r'0\.\.4294967295'),
    ({'stop': ''}, 'stop', 'none empty'),
    ({'stop': ['a', 1]}, 'stop', 'none empty'),
    ({'stop': ['a'] * 5}, 'stop', 'up to 4'),
    ({'stop': 'a' * 1001}, 'stop', 'over 1000 characters'),
    ({'stop_rule': 'luck'}, 'stop_rule', "'budget', 'confidence'"),
    ({'stop_rule': ['budget']}, 'stop_rule', 'one of'),
    ({'stop_threshold': 1}, 'stop_threshold', 'leave it out'),
    (
      {'stop_rule': 'confidence', 'stop_threshold': 1.5},
      'stop_threshold',
      '<= 1',
    ),
    (
      {'stop_rule': 'agreement', 'stop_threshold': 1.5},
      'stop_threshold',
      'whole',
    ),
    (
      {'stop_rule': 'progress', 'stop_threshold': 1},
      'stop_threshold',
      'price_per_token',
    ),
    ({'price_per_token': 1}, 'price_per_token', "stop_rule='progress'"),
    (
      {'stop_rule': 'progress', 'price_per_token': math.inf},
      'price_per_token',
      'a number >= 0',
    ),
    ({'max_thinking_tokens': -1}, 'max_thinking_tokens', '=-1 is given'),
    ({'stream_options': {'include_usage': True}}, 'stream_options', '"stream"'),
    ({'stream': True, 'stream_options': 1}, 'stream_options', '"stream"'),
    ({'tools': [{'type': 'function'}]}, 'tools', 'not supported here'),
    ({'tool_choice': 'required'}, 'tool_choice', 'not supported here'),
    ({'logprobs': True}, 'logprobs', 'logprobs=True is not supported'),
    ({'logprobs': 0}, 'logprobs', 'logprobs=0 is not supported'),
    ({'response_format': {'type': 'json_object'}}, 'response_format', 'json_'),
    ({'frequency_penalty': 0.1}, 'frequency_penalty', 'not supported'),
    ({'frequency_penalty': False}, 'frequency_penalty', 'not supported'),
    ({'top_k': 5}, 'top_k', 'not supported'),
    ({'reasoning_effort': 'low'}, 'reasoning_effort', 'max_thinking_tokens'),
    ({'max_token': 5}, 'max_token', "'max_token' is not known"),
    ({'prompt': 'x'}, 'prompt', 'not known'),
  ],
)
def test_what_is_refused(changes, param, message):
  with pytest.raises(ApiError, match=message) as caught:
    chat(**changes)
  error = caught.value
  assert error.status == 400
  assert error.body['error']['param'] == param
  assert error.body['error']['type'] == 'invalid_request_error'
  assert '\n' not in error.message
  assert len(error.message) < 400
  json.dumps(error.body)


@pytest.mark.parametrize(
  'prompt', [None, [], 1, [[]], ['a', 1], [1, True], [1.5], {'a': 1}]
)
def test_prompts_that_are_refused(prompt):
  with pytest.raises(ApiError, match='a text, token ids, or a list of these'):
    completion(prompt=prompt)


def test_a_long_list_of_prompts_is_not_looked_through():
  class Many(list):
    def __iter__(self):
      raise AssertionError

  with pytest.raises(ApiError, match='100,000 prompts are given; .* are 32 a'):
    completion(prompt=Many([[1]] * 100_000))


def test_each_list_of_ids_is_looked_through_once():
  class Ids(list):
    seen = 0

    def __iter__(self):
      self.seen += 1
      return super().__iter__()

  for ids in (Ids([1, 2]), Ids([1, 2])):
    one = completion(prompt=ids).prompts
    assert (one, ids.seen) == ([ids], 1)
    several = completion(prompt=[ids, 'a']).prompts
    assert (several, ids.seen) == ([ids, 'a'], 2)


def test_too_many_responses():
  with pytest.raises(ApiError, match='n=16 for 3 prompts .* 32 responses'):
    completion(prompt=['a', 'b', 'c'], n=16)


@pytest.mark.parametrize('body', [None, [], 'x', 1])
def test_a_body_that_is_no_object(body):
  with pytest.raises(ApiError, match='must be a JSON object'):
    openai_api.chat(body, 'm')


def test_another_model():
  with pytest.raises(ApiError, match="'x' is not served here: take 'm'") as e:
    chat(model='x')
  assert e.value.status == 404
  assert e.value.body['error']['code'] == 'model_not_found'


@pytest.mark.parametrize(
  'status, kind',
  [
    (400, 'invalid_request_error'),
    (401, 'authentication_error'),
    (429, 'rate_limit_error'),
    (500, 'server_error'),
  ],
)
def test_types_of_errors(status, kind):
  body = ApiError(status, 'm').body
  error = {'message': 'm', 'type': kind, 'param': None, 'code': None}
  assert body == {'error': error}
