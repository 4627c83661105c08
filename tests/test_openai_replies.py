"""The JSON of responses, whole and in chunks."""

from meta_rl.serving import openai_api, openai_replies
from meta_rl.serving.openai_replies import Said

CHAT = openai_api.chat(
  {
    'model': 'm',
    'messages': [{'role': 'user', 'content': 'Hi'}],
    'return_confidence': True,
  },
  'm',
)
TEXT = openai_api.completion({'model': 'm', 'prompt': 'Hi'}, 'm')
DONE = Said(
  thought='hm',
  answer='yes',
  finish='stop',
  scores=[(4, 0.5)],
  thinking=8,
  answer_tokens=3,
  probe=5,
  stopped_by='confidence',
  forced=True,
)
HEAD = {'id': 'x'}


def test_heads():
  head = openai_replies.head_of(is_chat=True, stream=False, model='m')
  assert head['object'] == 'chat.completion'
  assert head['id'].startswith('chatcmpl-')
  assert head['model'] == 'm'
  stream = openai_replies.head_of(is_chat=True, stream=True, model='m')
  assert stream['object'] == 'chat.completion.chunk'
  assert stream['id'] != head['id']
  text = openai_replies.head_of(is_chat=False, stream=True, model='m')
  assert text['object'] == 'text_completion'
  assert text['id'].startswith('cmpl-')


def test_a_whole_chat():
  body = openai_replies.response(HEAD, [DONE], 2, CHAT)
  assert body['choices'] == [
    {
      'index': 0,
      'finish_reason': 'stop',
      'logprobs': None,
      'message': {
        'role': 'assistant',
        'content': 'yes',
        'refusal': None,
        'reasoning_content': 'hm',
      },
      'thinking_stopped_by': 'confidence',
      'confidence': [{'thinking_tokens': 4, 'score': 0.5}],
    }
  ]
  # 8 of the thought + 5 of probes + 3 of the answer.
  assert body['usage'] == {
    'prompt_tokens': 2,
    'completion_tokens': 16,
    'total_tokens': 18,
    'completion_tokens_details': {
      'reasoning_tokens': 13,
      'thinking_tokens': 8,
      'probe_tokens': 5,
      'answer_tokens': 3,
      'forced': True,
    },
  }


def test_a_whole_completion_of_two():
  other = Said(answer='no', finish='length', thinking=1, answer_tokens=1)
  body = openai_replies.response(HEAD, [DONE, other], 2, TEXT)
  assert [choice['text'] for choice in body['choices']] == ['yes', 'no']
  assert [choice['index'] for choice in body['choices']] == [0, 1]
  assert 'confidence' not in body['choices'][0]
  assert body['usage']['total_tokens'] == 2 + 16 + 2


def test_chunks_of_a_chat():
  new = Said(thought='h')
  first = openai_replies.chunk(HEAD, 1, new, CHAT, first=True)
  (choice,) = first['choices']
  assert choice['index'] == 1
  assert choice['finish_reason'] is None
  assert choice['delta'] == {
    'role': 'assistant',
    'content': '',
    'reasoning_content': 'h',
  }
  assert 'usage' not in first
  (last,) = openai_replies.chunk(HEAD, 1, DONE, CHAT)['choices']
  assert last['delta'] == {'reasoning_content': 'hm', 'content': 'yes'}
  assert last['finish_reason'] == 'stop'
  assert last['confidence'][0]['score'] == 0.5


def test_chunks_with_usage():
  ask = openai_api.completion(
    {
      'model': 'm',
      'prompt': 'Hi',
      'stream': True,
      'stream_options': {'include_usage': True},
    },
    'm',
  )
  chunk = openai_replies.chunk(HEAD, 0, Said(answer='a'), ask)
  assert chunk['choices'][0]['text'] == 'a'
  assert chunk['usage'] is None
  last = openai_replies.usage_chunk(HEAD, [DONE], 2)
  assert last['choices'] == []
  assert last['usage']['prompt_tokens'] == 2


def test_models():
  body = openai_replies.models('m', 5, max_model_len=7)
  assert body['object'] == 'list'
  assert body['data'] == [
    {
      'id': 'm',
      'object': 'model',
      'created': 5,
      'owned_by': 'meta_rl',
      'max_model_len': 7,
    }
  ]
