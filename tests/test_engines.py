"""Rows of what vLLM and SGLang return: dictionaries of the shapes they have.

Those of vLLM 0.10 to 0.20 (vllm/outputs.py, vllm/logprobs.py, the completions
and chat answers of its server) and of SGLang's /generate.
"""

import json
import types

import pytest

from meta_rl import external, tasks

KIT = tasks.make_kit('countdown')
PROMPT = '<bos> 1 2 3 = 6 <think>'
RESPONSES = ('1 2 + ; </think> 1 2 + 3 + <eos>', '2 3 + </think> 4 <eos>')
PROMPT_IDS = KIT.encode(PROMPT)
IDS = [KIT.encode(text) for text in RESPONSES]
LOG_PROBS = [[-0.5 - i / 8 for i in range(len(ids))] for ids in IDS]


def wanted(**more):
  return [
    {
      'prompt_ids': PROMPT_IDS,
      'response_ids': ids,
      'log_probs': log_probs,
      'response': text,
      **more,
    }
    for ids, log_probs, text in zip(IDS, LOG_PROBS, RESPONSES)
  ]


def vllm_sample(index):
  """A CompletionOutput: beside the drawn token the likeliest one is there."""
  likeliest = {3: {'logprob': -0.01, 'rank': 1, 'decoded_token': 'x'}}
  dicts = [
    {token: {'logprob': value, 'rank': 2, 'decoded_token': '?'}} | likeliest
    for token, value in zip(IDS[index], LOG_PROBS[index])
  ]
  return {
    'index': index,
    'text': RESPONSES[index],
    'token_ids': IDS[index],
    'cumulative_logprob': sum(LOG_PROBS[index]),
    'logprobs': dicts,
    'finish_reason': 'stop',
    'stop_reason': None,
  }


VLLM = {
  'request_id': '0',
  'prompt': PROMPT,
  'prompt_token_ids': PROMPT_IDS,
  'prompt_logprobs': None,
  'outputs': [vllm_sample(0), vllm_sample(1)],
  'finished': True,
}


def objects(value):
  """Attributes for fields, as the engine's classes have; ids stay keys."""
  if isinstance(value, list):
    return [objects(each) for each in value]
  if not isinstance(value, dict):
    return value
  made = {k: objects(x) for k, x in value.items()}
  if any(isinstance(k, int) for k in value):
    return made
  return types.SimpleNamespace(**made)


@pytest.mark.parametrize(
  'output',
  [VLLM, objects(VLLM), json.loads(json.dumps(VLLM))],
  ids=['mapping', 'objects', 'json'],
)
def test_a_request_output_of_vllm(output):
  assert external.from_vllm(output) == wanted()
  assert external.from_vllm(output, reward=1.0) == wanted(reward=1.0)


def chat_choice(index):
  content = [
    {'token': '?', 'logprob': value, 'bytes': [63], 'top_logprobs': []}
    for value in LOG_PROBS[index]
  ]
  return {
    'index': index,
    'message': {'role': 'assistant', 'content': RESPONSES[index]},
    'logprobs': {'content': content},
    'finish_reason': 'stop',
    'stop_reason': None,
    'token_ids': IDS[index],
  }


def completion_choice(index):
  size = len(IDS[index])
  return {
    'index': index,
    'text': RESPONSES[index],
    'logprobs': {
      'text_offset': [0] * size,
      'token_logprobs': LOG_PROBS[index],
      'tokens': ['?'] * size,
      'top_logprobs': [{'?': -1.0}] * size,
    },
    'finish_reason': 'stop',
    'stop_reason': None,
    'token_ids': IDS[index],
    'prompt_token_ids': PROMPT_IDS,
  }


CHAT = {
  'id': 'chatcmpl-0',
  'object': 'chat.completion',
  'choices': [chat_choice(0), chat_choice(1)],
  'prompt_logprobs': None,
  'prompt_token_ids': PROMPT_IDS,
}
COMPLETION = {
  'id': 'cmpl-0',
  'object': 'text_completion',
  'choices': [completion_choice(0), completion_choice(1)],
}


@pytest.mark.parametrize('response', [CHAT, COMPLETION], ids=['chat', 'text'])
def test_the_openai_compatible_api(response):
  assert external.from_openai(response) == wanted()
  named = external.from_openai(response, question='What?')
  assert named == wanted(question='What?')
  without = {k: v for k, v in CHAT.items() if k != 'prompt_token_ids'}
  assert external.from_openai(without, PROMPT_IDS) == wanted()


def sglang_sample(index):
  pairs = zip(LOG_PROBS[index], IDS[index])
  return {
    'text': RESPONSES[index],
    'output_ids': IDS[index],
    'meta_info': {
      'id': 'a',
      'finish_reason': {'type': 'stop', 'matched': IDS[index][-1]},
      'prompt_tokens': len(PROMPT_IDS),
      'completion_tokens': len(IDS[index]),
      'cached_tokens': 0,
      'output_token_logprobs': [[value, token, None] for value, token in pairs],
      'e2e_latency': 0.1,
    },
  }


def test_sglang():
  samples = [sglang_sample(0), sglang_sample(1)]
  assert external.from_sglang(samples, PROMPT_IDS) == wanted()
  assert external.from_sglang(samples[1], PROMPT_IDS, reward=0.0) == [
    wanted(reward=0.0)[1]
  ]
  # In the engine's own process entries are tuples, with texts if asked.
  found = samples[0]['meta_info']['output_token_logprobs']
  found[:] = [(value, token, '?') for value, token, _ in found]
  assert external.from_sglang(samples, PROMPT_IDS) == wanted()


@pytest.mark.parametrize(
  'rows',
  [
    external.from_vllm(VLLM, reward=1.0),
    external.from_openai(CHAT, reward=1.0),
    external.from_sglang(
      [sglang_sample(0), sglang_sample(1)], PROMPT_IDS, reward=1.0
    ),
  ],
  ids=['vllm', 'openai', 'sglang'],
)
def test_rows_are_what_a_run_reads(rows, tmp_path):
  path = tmp_path / 'rollouts.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  made = external.read_rows(
    path, vocab_size=128, task=KIT.make_task(), encode=KIT.encode
  )
  for row, ids, log_probs in zip(made, IDS, LOG_PROBS, strict=True):
    assert row.response.tolist() == ids
    assert row.log_probs.tolist() == log_probs
    assert row.mask.all()
    assert row.reward == 1.0
    assert row.parts.end == len(ids) - 1


def test_rounding_above_zero_is_zero_and_no_more():
  sample = sglang_sample(0)
  found = sample['meta_info']['output_token_logprobs']
  found[0][0], found[1][0], found[2][0] = 1e-7, 0.0, 0.3
  (row,) = external.from_sglang(sample, PROMPT_IDS)
  assert row['log_probs'][:3] == [0.0, 0.0, 0.3]


def without(owner, *path):
  """A copy of JSON without one key."""
  owner = json.loads(json.dumps(owner))
  inner = owner
  for key in path[:-1]:
    inner = inner[key]
  del inner[path[-1]]
  return owner


BAD = [
  (external.from_vllm, VLLM['outputs'][0], 'there is no outputs in'),
  (external.from_vllm, {'outputs': None, 'x': 1}, 'there is no outputs in'),
  (
    external.from_vllm,
    without(VLLM, 'outputs', 1, 'logprobs'),
    r'has no logprobs: sample with SamplingParams\(logprobs=0\)',
  ),
  (
    external.from_vllm,
    without(VLLM, 'outputs', 0, 'token_ids'),
    'there is no token_ids in',
  ),
  (
    external.from_vllm,
    without(VLLM, 'prompt_token_ids'),
    'there is no prompt_token_ids in',
  ),
  (
    external.from_vllm,
    without(VLLM, 'outputs', 0, 'logprobs', 2),
    r'logprobs has \d+ entries for \d+ tokens',
  ),
  (
    external.from_vllm,
    without(VLLM, 'outputs', 0, 'logprobs', 0, str(IDS[0][0])),
    f'logprobs lack token {IDS[0][0]}, which was drawn',
  ),
  (
    external.from_openai,
    without(CHAT, 'choices', 0, 'token_ids'),
    'has no token_ids: ask with "return_token_ids": true',
  ),
  (
    external.from_openai,
    without(CHAT, 'prompt_token_ids'),
    'has no prompt_token_ids: ask with',
  ),
  (
    external.from_openai,
    without(CHAT, 'choices', 1, 'logprobs'),
    'has no logprobs: ask with "logprobs": true',
  ),
  (
    external.from_openai,
    without(COMPLETION, 'choices', 1, 'logprobs', 'token_logprobs', 0),
    r'logprobs has \d+ entries for \d+ tokens',
  ),
  (external.from_openai, {'error': {}}, 'there is no choices in'),
  (
    external.from_sglang,
    without(sglang_sample(0), 'meta_info', 'output_token_logprobs'),
    'no output_token_logprobs: sample with return_logprob=True',
  ),
  (external.from_sglang, {'text': 'a'}, 'there is no meta_info in'),
  # What an engine returns for several prompts.
  (external.from_vllm, [VLLM], 'there is no outputs in a list'),
]


@pytest.mark.parametrize('make, given, message', BAD, ids=range(len(BAD)))
def test_what_is_missing_is_said(make, given, message):
  more = (PROMPT_IDS,) if make is external.from_sglang else ()
  with pytest.raises(ValueError, match=message) as error:
    make(given, *more)
  assert '\n' not in str(error.value)
