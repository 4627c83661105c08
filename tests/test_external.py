"""Rollouts of a file: what is read, what is refused, groups, shapes, order."""

import json
import math

import numpy as np
import pytest

from meta_rl import external, steps, tokenizer
from meta_rl.tasks import countdown_task, make_kit
from meta_rl.types import Rollout

TASK = countdown_task(n=3, ops='+-', max_value=99)
KIT = make_kit('countdown')
PROMPT = '<bos> 1 2 3 = 6 <think>'
OTHER = '<bos> 2 2 5 = 9 <think>'
RESPONSE = '1 2 + 3 ; </think> 1 2 + 3 + <eos>'
SIZE = len(RESPONSE.split())


def write(path, *records):
  lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
  path.write_text('\n'.join(lines), encoding='utf-8')
  return path


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'rollouts.jsonl'


def read(path, **changes):
  options = {'vocab_size': 128, 'task': TASK, 'encode': KIT.encode} | changes
  return external.read_rows(path, **options)


def record(prompt=PROMPT, response=RESPONSE, **changes):
  """A row as text; a change to None leaves a key out."""
  made = {'prompt': prompt, 'response': response} | changes
  return {k: v for k, v in made.items() if v is not None}


# ---- rows


def test_a_row_of_text(path):
  log_probs = [-0.5] * (SIZE - 1) + [0.0]
  write(path, '', record(log_probs=log_probs, reward=1, note='left alone'))
  (row,) = read(path)
  assert row.line == 2
  assert tokenizer.decode(row.prompt) == PROMPT
  assert tokenizer.decode(row.response) == RESPONSE
  assert row.mask.all()
  assert row.log_probs.tolist() == log_probs
  assert row.reward == 1.0
  assert row.response.dtype == np.int32
  assert row.log_probs.dtype == np.float32


def test_ids_count_where_there_is_text_too(path):
  """127 is an id of the model's padded vocabulary, without a word."""
  write(path, record(prompt_ids=[1, 2], response_ids=[3, 127]))
  (row,) = read(path)
  assert row.prompt == (1, 2)
  assert row.response.tolist() == [3, 127]


def test_without_log_probs_they_are_unknown(path):
  write(path, record(), record(mask=[0, 1] + [1] * (SIZE - 2)))
  plain, masked = read(path)
  assert np.isnan(plain.log_probs).all()
  assert math.isnan(plain.reward)
  assert plain.mask.all()
  assert masked.mask.tolist() == [False] + [True] * (SIZE - 1)
  # What was not drawn has no log-prob to be known.
  assert masked.log_probs[0] == 0
  assert np.isnan(masked.log_probs[1:]).all()


def test_null_is_a_token_that_was_not_drawn(path):
  log_probs = [-1.0, None, -2.0] + [-1.0] * (SIZE - 3)
  write(path, record(log_probs=log_probs))
  (row,) = read(path)
  assert row.mask.tolist() == [True, False] + [True] * (SIZE - 2)
  assert row.log_probs[:3].tolist() == [-1, 0, -2]


ONES = [-1.0] * SIZE
WRONG = [
  ('{', 'not JSON'),
  ('[1]', 'a JSON list: give an object'),
  ('[' * 100_000, 'not JSON'),
  (record(prompt=None), '"prompt_ids", a list of token ids, or "prompt"'),
  (record(response=7), '"response_ids", a list of token ids, or "response"'),
  (record(prompt_ids='1 2'), '"prompt_ids" must be a list of whole numbers'),
  (record(response_ids=[1.5]), '"response_ids" must be a list of whole'),
  (record(response_ids=[True]), '"response_ids" must be a list of whole'),
  (record(response=''), 'the response has no tokens'),
  (record(prompt_ids=[]), 'the prompt has no tokens'),
  (record(response='1 plus 2'), "'plus' is not one of the 116 words"),
  (record(response_ids=[3, 128]), 'token 128: the vocabulary is 0..127'),
  (record(prompt_ids=[-1]), 'token -1: the vocabulary'),
  (record(prompt_ids=[10**30]), 'the vocabulary is 0..127'),
  (record(response='1 <eos> 2'), 'token 1 is the end-of-text and 1 tokens'),
  (record(log_probs=ONES[1:]), f'has {SIZE - 1} entries for {SIZE} response'),
  (record(log_probs=[*ONES, -1.0]), f'has {SIZE + 1} entries for {SIZE}'),
  (record(log_probs=-1.0), '"log_probs" must be a list'),
  (record(log_probs=[0.1, *ONES[1:]]), 'has 0.1 for token 0: give nats'),
  (record(log_probs=[math.nan, *ONES[1:]]), 'has nan for token 0'),
  (record(log_probs=[*ONES[1:], -math.inf]), f'has -inf for token {SIZE - 1}'),
  (record(log_probs=['x', *ONES[1:]]), "has 'x' for token 0"),
  (record(log_probs=[True, *ONES[1:]]), 'has True for token 0'),
  (record(log_probs=[None] * SIZE), 'no token of the response was drawn'),
  (record(mask=[1]), f'"mask" has 1 entries for {SIZE} response tokens'),
  (record(mask=[2] * SIZE), '"mask" must hold 0 and 1'),
  (record(mask=[0] * SIZE), 'no token of the response was drawn'),
  (
    record(mask=[1] * SIZE, log_probs=[-1.0, None, *ONES[2:]]),
    '"log_probs" is null for token 1, which "mask" says was drawn',
  ),
  (record(reward='1'), '"reward" is \'1\': give a finite number'),
  (record(reward=math.nan), '"reward" is nan'),
  (record(reward=True), '"reward" is True'),
  (record(reward=1e39), '"reward" is 1e+39'),
  (record(reward=10**400), '"reward" is 1000'),
  (record(log_probs=[-1e39, *ONES[1:]]), 'has -1e+39 for token 0'),
  (record(log_probs=[-(10**400), *ONES[1:]]), 'has -1000'),
]


@pytest.mark.parametrize('wrong, message', WRONG, ids=range(len(WRONG)))
def test_errors_name_file_and_line(wrong, message, path):
  write(path, record(), '', wrong)
  with pytest.raises(ValueError) as error:
    read(path)
  line = str(error.value)
  assert line.startswith(f'{path}, line 3: ')
  assert message in line
  assert '\n' not in line
  assert len(line) < len(str(path)) + 250


def test_files_that_cannot_be_read(path):
  with pytest.raises(OSError, match='No such file'):
    read(path)
  write(path, '', ' ')
  with pytest.raises(ValueError, match='has no row'):
    read(path)
  path.write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match='is not UTF-8'):
    read(path)


# ---- groups


def test_rows_of_a_prompt_make_groups(path):
  texts = ['1 <eos>', '2 <eos>', '3 <eos>', '4 <eos>', '5 <eos>', '6 <eos>']
  prompts = [PROMPT, OTHER, PROMPT, PROMPT, OTHER, PROMPT]
  write(path, *(record(p, t) for p, t in zip(prompts, texts)))
  groups = external.group_rows(
    path, read(path), 2, lambda ids, _: {'n': len(ids)}
  )
  # In the order of the file, wherever the other prompts lie between.
  lines = [[row.line for row in group.rows] for group in groups]
  assert lines == [[1, 3], [4, 6], [2, 5]]
  assert [group.problem for group in groups] == [{'n': 7}] * 3


def test_a_group_that_is_not_whole(path):
  write(path, record(), record(OTHER), record(), record(), record(OTHER))
  with pytest.raises(ValueError, match='line 1: its prompt has 3 rows in the'):
    external.group_rows(path, read(path), 2)


def test_a_prompt_that_is_no_problem(path):
  def refuse(prompt, question):
    raise ValueError(f'no problem of {len(prompt)} tokens')

  write(path, '', record(), record())
  with pytest.raises(ValueError, match='line 2: no problem of 7 tokens'):
    external.group_rows(path, read(path), 2, refuse)


# ---- shapes


def batches(path, **changes):
  options = {
    'num_prompts': 1,
    'group_size': 2,
    'seed': 0,
    'task': TASK,
    'vocab_size': 128,
    'encode': KIT.encode,
  }
  return external.RolloutBatches(path, **options | changes)


def test_a_batch_by_hand(path):
  """A prompt of 3 and one of 2 tokens; a thought that the budget ended, one
  that ended itself, one without an answer, and one that was cut."""
  write(
    path,
    record(
      '<bos> 1 <think>',
      '2 ; </think> 3 <eos>',
      log_probs=[-1.0, -2.0, None, -3.0, -4.0],
      reward=1,
    ),
    record('<bos> 1 <think>', '</think> 3', reward=0),
    record('1 <think>', '2 <eos>'),
    record('1 <think>', '2 3 4'),
  )
  made = next(batches(path, num_prompts=2))
  # The shuffle decides which group is the first.
  order = [0, 1] if made['prompt_mask'][0].all() else [1, 0]
  made = {k: v[order] for k, v in made.items()}
  word = lambda text: tokenizer.encode(text)
  assert made['prompts'].tolist() == [
    word('<bos> 1 <think>'),
    word('<pad> 1 <think>'),
  ]
  assert made['prompt_mask'].tolist() == [[1, 1, 1], [0, 1, 1]]
  (traces, cache) = steps.replay(None, made, None)
  assert cache is None
  assert isinstance(traces, Rollout)
  texts = [
    '<bos> 1 <think> 2 ; </think> 3 <eos>',
    '<bos> 1 <think> </think> 3 <pad> <pad> <pad>',
    '<pad> 1 <think> 2 <eos> <pad> <pad> <pad>',
    '<pad> 1 <think> 2 3 4 <pad> <pad>',
  ]
  assert [tokenizer.decode(row) for row in traces.tokens] == texts
  shown = lambda mask: [''.join('.x'[int(x)] for x in row) for row in mask]
  assert shown(traces.token_mask) == [
    'xxxxxxxx',
    'xxxxx...',
    '.xxxx...',
    '.xxxxx..',
  ]
  assert shown(traces.mask) == ['...xx.xx', '...xx...', '...xx...', '...xxx..']
  assert shown(traces.thinking_mask) == [
    '...xx...',
    '........',
    '...x....',
    '...xxx..',
  ]
  assert traces.forced.tolist() == [True, False, False, False]
  assert traces.truncated.tolist() == [False, True, False, True]
  known = traces.behavior_log_probs
  assert known[0].tolist() == [0, 0, 0, -1, -2, 0, -3, -4]
  np.testing.assert_array_equal(np.isnan(known[1:]), traces.mask[1:])
  assert made['rollout/rewards'][0].tolist() == [1, 0]
  assert np.isnan(made['rollout/rewards'][1]).all()
  assert traces.weights is None


def test_a_stop_string_of_several_tokens(path):
  """Its first token alone, put there, is part of the thought."""
  long_stop = TASK.__class__(**vars(TASK) | {'stop_ids': (7, 4)})
  write(
    path,
    record(response='1 yes </think> 3 <eos>', mask=[1, 0, 0, 1, 1]),
    record(response='1 yes </think> 3 <eos>', mask=[1, 0, 1, 1, 1]),
    record(response='1 yes </think> 3 <eos>'),
    record(response='yes 1 </think> 3 <eos>', mask=[0, 1, 1, 1, 1]),
  )
  traces, _ = steps.replay(
    None, next(batches(path, group_size=4, task=long_stop)), None
  )
  assert traces.thinking_mask.sum(1).tolist() == [1, 2, 2, 2]
  assert traces.forced.tolist() == [True, False, False, False]


def test_a_batch_takes_the_first_bucket_that_holds_it(path):
  write(
    path,
    *[record(response='1 <eos>')] * 2,
    *[record(OTHER, '1 2 3 4 <eos>')] * 2,
  )
  found = {}
  for _, made in zip(range(4), batches(path, buckets=(2, 4, 8))):
    longest = int(made['rollout/token_mask'].sum(-1).max()) - 7
    found[longest] = made['rollout/tokens'].shape[2] - 7
  assert found == {2: 2, 5: 8}
  # One bucket without any: as long as the longest of the file.
  shapes = {
    made['rollout/tokens'].shape
    for _, made in zip(range(4), batches(path, buckets=()))
  }
  assert shapes == {(1, 2, 12)}


@pytest.mark.parametrize(
  'options, message',
  [
    ({'buckets': (4,)}, 'line 2: the response has 5 tokens and the last buck'),
    ({'needs_reward': True}, 'line 2: no "reward", and rewards are those of'),
    ({'num_prompts': 2}, 'has 1 groups of 2 rows and a batch takes 2'),
    ({'vocab_size': 100}, 'line 1: the prompt has token'),
  ],
)
def test_files_that_do_not_fit(options, message, path):
  last = f'<bos> {99} 2 3 = 6 <think>'
  write(
    path,
    record(last, '1 <eos>', reward=0.5),
    record(last, '1 2 3 4 <eos>'),
  )
  with pytest.raises(ValueError, match=message):
    batches(path, **options)


# ---- order


def first_tokens(iterator, count):
  """The first response tokens of some batches: which groups they hold."""
  return [
    next(iterator)['rollout/tokens'][:, 0, 7].tolist() for _ in range(count)
  ]


@pytest.fixture
def numbered(path):
  """Ten groups, told apart by their first response token."""
  records = []
  for i in range(10):
    records += [record(f'<bos> {i} 2 3 = 6 <think>', f'{i} <eos>')] * 2
  return write(path, *records)


def test_every_epoch_is_a_shuffle_of_all_groups(numbered):
  epochs = [
    sum(first_tokens(it, 2), [])
    for it in [batches(numbered, num_prompts=5)]
    for _ in range(3)
  ]
  assert len({tuple(epoch) for epoch in epochs}) == 3
  for epoch in epochs:
    assert sorted(epoch) == [tokenizer.integer(i) for i in range(10)]
  again = first_tokens(batches(numbered, num_prompts=5), 2)
  assert sum(again, []) == epochs[0]
  other = first_tokens(batches(numbered, num_prompts=5, seed=1), 2)
  assert sum(other, []) != epochs[0]


def test_the_order_goes_on_from_a_state(numbered):
  whole = first_tokens(batches(numbered, num_prompts=3), 9)
  first = batches(numbered, num_prompts=3)
  assert first_tokens(first, 4) == whole[:4]
  state = json.loads(json.dumps(first.get_state()))
  second = batches(numbered, num_prompts=3)
  second.set_state(state)
  assert first_tokens(second, 5) == whole[4:]


def test_another_file_than_at_the_checkpoint_is_refused(numbered):
  state = batches(numbered).get_state()
  text = numbered.read_text().replace('"9 <eos>"', '"8 <eos>"')
  numbered.write_text(text)
  with pytest.raises(ValueError, match='has changed since the checkpoint'):
    batches(numbered).set_state(state)


# ---- out


def test_what_is_written_is_read_as_it_was(path):
  """Random traces with forced tokens, bit for bit."""
  rng = np.random.default_rng(0)
  rows, width, start = 6, 12, 4
  tokens = rng.integers(5, 116, (rows, width)).astype(np.int32)
  sizes = rng.integers(1, width - start + 1, rows)
  columns = np.arange(width)
  real = (columns < start + sizes[:, None]) & (columns >= 1)
  mask = real & (columns >= start) & (rng.random((rows, width)) < 0.8)
  mask[:, start] = True
  log_probs = np.where(mask, -rng.exponential(1, mask.shape), 0)
  traces = Rollout(
    tokens=np.where(real, tokens, 0),
    token_mask=real,
    mask=mask,
    thinking_mask=mask,
    behavior_log_probs=log_probs.astype(np.float32),
    raw_log_probs=log_probs,
    truncated=np.zeros(rows, bool),
    forced=np.zeros(rows, bool),
  )
  rewards = rng.random(rows).astype(np.float32)
  made = external.rows_of(
    traces, prompt_length=start, rewards=rewards, decode=tokenizer.decode
  )
  write(path, *made)
  for b, row in enumerate(read(path)):
    place = slice(start, start + sizes[b])
    assert row.prompt == tuple(tokens[b, 1:start].tolist())
    np.testing.assert_array_equal(row.response, tokens[b, place])
    np.testing.assert_array_equal(row.mask, mask[b, place])
    np.testing.assert_array_equal(
      row.log_probs, traces.behavior_log_probs[b, place]
    )
    assert np.float32(row.reward) == rewards[b]
    assert made[b]['response'] == tokenizer.decode(tokens[b, place])
  (row, *_) = external.rows_of(
    traces, prompt_length=start, decode=tokenizer.decode
  )
  assert 'reward' not in row
