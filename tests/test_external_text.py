"""Given rollouts of a text task: their tokens, ends, problems and credit."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import tiny

from meta_rl import (
  external,
  generate,
  models,
  rollout,
  setup_own,
  setup_run,
  setup_steps,
  signals,
  steps,
  tasks,
  text_tokenizer,
)
from meta_rl.types import Model, Rollout

pytest_plugins = ['small_runs']

WORDS = text_tokenizer.load('bytes')
PAD, EOS = WORDS.pad_id, WORDS.eos_id
CLOSE, OTHER_END = WORDS.id_of('</think>'), WORDS.id_of('<eos>')
GROUP, PROMPTS = 4, 2


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


# ---- text and ids


@pytest.fixture(scope='module')
def config(small):
  """SmolLM2's, of random weights, on 2 prompts of 4 rows each."""
  return small.config(
    'mrt_smollm2_135m',
    'external,tiny',
    task__data__high=6,
    rollout__num_prompts=PROMPTS,
    rollout__group_size=GROUP,
    batching__mini_batches=1,
  )


@pytest.fixture(scope='module')
def kit(config):
  return setup_run.task_kit(config)


@pytest.fixture(scope='module')
def problems(config):
  return setup_run.load_problems(config, 'train')


def prompt_of(kit, record):
  """The ids of a problem's prompt, as the task writes it."""
  arrays = kit.record_arrays(record)
  return arrays['prompts'][arrays['prompt_mask']].tolist()


def responses(record):
  """Texts of a group: right, wrong, right without an end, without an answer."""
  right = record['accepted'][0]
  return [
    f'1+1=2 no\n2+2=4 no\n3+3=6</think>{right}<|im_end|>',
    '1+1=2 no\n</think>0<|im_end|>',
    f'ça → 7\n</think>{right}',
    '2+2=4 no\n5<|im_end|>',
  ]


REWARDS = [1, 0, 1, 0]


@pytest.fixture(scope='module')
def texts(kit, problems):
  """Rows of text alone, as an engine writes them that returns no ids."""
  return [
    {'prompt': kit.decode(prompt_of(kit, problems[i])), 'response': response}
    for i in range(PROMPTS)
    for response in responses(problems[i])
  ]


def as_ids(row):
  return {
    f'{name}_ids': WORDS.encode(row[name]) for name in ('prompt', 'response')
  }


def load(config, path, **changes):
  """(batch, traces) of a file of the config's task."""
  config = config.copy_and_resolve_references()
  config.rollout.source = f'jsonl:{path}'
  config.update_from_flattened_dict(changes)
  batch = next(setup_own.load_rollouts(config, setup_run.make_task(config)))
  return batch, steps.replay(None, batch, None)[0]


def test_text_is_in_the_tasks_own_tokens(config, texts, tmp_path):
  path = write(tmp_path / 'rollouts.jsonl', texts)
  kit = setup_run.task_kit(config)
  rows = external.read_rows(
    path, vocab_size=262, task=kit.make_task(), encode=kit.encode
  )
  for row, given in zip(rows, texts, strict=True):
    assert kit.decode(row.prompt) == given['prompt']
    assert kit.decode(row.response) == given['response']
    assert list(row.prompt) == WORDS.encode(given['prompt'])
  # Each special token is one id, and a letter outside of ASCII two or three.
  assert rows[1].response.tolist()[-3:] == [
    CLOSE,
    *WORDS.encode('0'),
    EOS,
  ]
  assert len(rows[2].response) > len(texts[2]['response']) - len('</think>')
  ids = write(tmp_path / 'ids.jsonl', map(as_ids, texts))
  jax.tree.map(
    np.testing.assert_array_equal, load(config, path), load(config, ids)
  )


def test_ids_count_where_text_is_other_tokens(config, texts, tmp_path):
  """Of an engine that drew them otherwise than a text is encoded."""
  rows = [as_ids(row) | {'response': 'not looked at'} for row in texts]
  path = write(tmp_path / 'ids.jsonl', rows)
  found = load(config, path)[1]
  wanted = load(config, write(tmp_path / 'text.jsonl', texts))[1]
  np.testing.assert_array_equal(found.tokens, wanted.tokens)


def test_log_probs_of_other_tokens_ask_for_ids(config, texts, tmp_path):
  texts = [*texts[:1], texts[1] | {'log_probs': [-1.0]}, *texts[2:]]
  with pytest.raises(ValueError, match='line 2: .* 1 entries .*response_ids"'):
    load(config, write(tmp_path / 'x.jsonl', texts))


def test_a_prompt_begins_as_the_tasks_do():
  words = text_tokenizer.TextTokenizer(WORDS.tokenizer, EOS, PAD, bos_id=97)
  assert words.encode_prompt('a') == [97, *WORDS.encode('a')]
  again = WORDS.decode([97]) + 'a'
  assert words.encode_prompt(again) == [97, *WORDS.encode('a')]


# ---- the same step as on traces that the policy itself has


def by_hand(kit, problems, texts, order):
  """(batch, traces) of the rows without a file: problems' arrays and numpy."""
  arrays = [kit.record_arrays(problems[i]) for i in order]
  batch = {k: np.stack([a[k] for a in arrays]) for k in arrays[0]}
  width = batch['prompts'].shape[1]
  rows = [texts[i * GROUP + g] for i in order for g in range(GROUP)]
  out = [WORDS.encode(row['response']) for row in rows]
  longest = max(map(len, out))
  response = np.array([x + [PAD] * (longest - len(x)) for x in out], np.int32)
  mask = np.array([[True] * len(x) + [False] * (longest - len(x)) for x in out])
  ends = np.isin(response, (CLOSE, EOS)) | ~mask
  before = lambda x: np.concatenate(
    [np.zeros((len(rows), width), x.dtype), x], 1
  )
  fork = lambda x: np.repeat(x, GROUP, axis=0)
  tokens, token_mask = before(response), before(mask)
  tokens[:, :width] = fork(batch['prompts'])
  token_mask[:, :width] = fork(batch['prompt_mask'])
  nothing = np.zeros(tokens.shape, np.float32)
  last = [x[-1] for x in out]
  return batch, Rollout(
    tokens=tokens,
    token_mask=token_mask,
    mask=before(mask),
    thinking_mask=before(np.cumsum(ends, 1) == 0),
    behavior_log_probs=nothing,
    raw_log_probs=nothing,
    truncated=np.array(last) != EOS,
    forced=np.zeros(len(rows), bool),
  )


@pytest.fixture(scope='module')
def measure(config):
  """`(kind, batch, traces) -> (measured, advantages)` of random weights."""
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  params = models.init_params(setup_run.model_config(config), jax.random.key(1))

  @functools.lru_cache
  def calls(kind):
    own = config.copy_and_resolve_references()
    own.prover.update({'kind': kind, 'num_branches': 2})
    prove = setup_own.make_training_calls(own, model, task)[1]
    return jax.jit(prove), setup_steps.make_advantages(own)

  def run(kind, batch, traces):
    prove, advantage_fn = calls(kind)
    traces = jax.tree.map(jnp.asarray, traces)
    batch = {k: jnp.asarray(x) for k, x in batch.items()}
    batch = {k: x for k, x in batch.items() if not k.startswith('rollout/')}
    found = prove(params, batch, traces, None, jax.random.key(2))
    return jax.device_get((found, advantage_fn(found, traces.tokens.shape[1])))

  return run


@pytest.mark.full
@pytest.mark.parametrize('kind', ['exact', 'sampled'])
def test_mrt_on_rows_of_text(
  kind, config, kit, problems, texts, measure, tmp_path
):
  """Graded by the verifier, J and credit as without a file, and as from ids."""
  batch, traces = load(config, write(tmp_path / 'text.jsonl', texts))
  found, advantages = measure(kind, batch, traces)
  # The shuffle decides which group is the first.
  first = WORDS.encode(texts[0]['prompt'])
  order = (
    [0, 1] if batch['prompts'][0].tolist()[-len(first) :] == first else [1, 0]
  )
  np.testing.assert_array_equal(found.rewards, REWARDS * PROMPTS)
  assert found.episodes.count.tolist() == [3, 1, 1, 2] * PROMPTS
  assert np.abs(advantages).max() > 0.1
  ids = load(config, write(tmp_path / 'ids.jsonl', map(as_ids, texts)))
  jax.tree.map(
    np.testing.assert_array_equal, measure(kind, *ids), (found, advantages)
  )
  own_batch, own = by_hand(kit, problems, texts, order)
  for name in ('answers', 'answer_mask', 'gold'):
    np.testing.assert_array_equal(batch[name], own_batch[name])
  shift = own.tokens.shape[1] - traces.tokens.shape[1]
  for name in ('thinking_mask', 'mask', 'token_mask', 'tokens'):
    np.testing.assert_array_equal(
      getattr(traces, name), getattr(own, name)[:, shift:], name
    )
  wanted, own_advantages = measure(kind, own_batch, own)
  np.testing.assert_array_equal(found.rewards, wanted.rewards)
  np.testing.assert_array_equal(
    found.episodes.ends + shift, wanted.episodes.ends
  )
  np.testing.assert_allclose(
    found.success, wanted.success, atol=1e-6, rtol=1e-4
  )
  np.testing.assert_allclose(advantages, own_advantages[:, shift:], atol=1e-4)
  if kind == 'exact':
    assert (found.success > 0).all()


@pytest.mark.full
def test_a_run_on_rows_of_text(small, config, texts, tmp_path):
  """Without ids or log-probs: they are taken for the policy's own."""
  config = config.copy_and_resolve_references()
  path = write(tmp_path / 'text.jsonl', texts)
  config.update_from_flattened_dict(
    {
      'rollout.source': f'jsonl:{path}',
      'total_steps': 2,
      'optimizer.warmup_steps': 0,
    }
  )
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  for row in result.rows:
    assert all(math.isfinite(value) for value in row.values())
    assert row['rollout/reward_mean'] == 0.5
    assert row['external/mismatch_max'] == 0
    assert row['verifier/timeout_share'] == 0
  assert result.rows[0]['optimizer/grad_norm'] > 0


@pytest.mark.full
def test_a_run_on_what_the_policy_sampled(small, config, tmp_path):
  """Through the command that samples: its text is the tokenizer's."""
  config = config.copy_and_resolve_references()
  rows = list(
    generate.sample(
      config,
      setup_run.initial_params(config),
      num_prompts=PROMPTS,
      group_size=GROUP,
    )
  )
  assert rows[0]['prompt'].startswith('<|im_start|>user\nUse each of ')
  assert rows[0]['prompt'] == WORDS.decode(rows[0]['prompt_ids'])
  path = write(tmp_path / 'rollouts.jsonl', rows)
  config.rollout.source = f'jsonl:{path}'
  config.total_steps = 1
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  assert result.rows[0]['external/mismatch_max'] < 1e-4


# ---- ends


@pytest.fixture(scope='module')
def ends_with(tmp_path_factory):
  """`stop strings -> kit` of a task with a second end token and a long stop."""
  folder = tmp_path_factory.mktemp('ends')
  WORDS.tokenizer.save(str(folder / 'tokenizer.json'))
  settings = {'eos_token': '<|im_end|>', 'pad_token': '<pad>'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  config = {'eos_token_id': [EOS, OTHER_END]}
  (folder / 'generation_config.json').write_text(json.dumps(config))
  return functools.partial(
    tasks.make_kit,
    'text',
    source='countdown',
    data={'n': 3, 'high': 6},
    tokenizer=str(folder),
    template='chatml',
    verifier='expression',
    stop='. </think>',
    prompt_length=128,
    answer_length=16,
  )


@pytest.fixture(scope='module')
def ends(ends_with):
  return ends_with(stop_strings=('\nUser:', 'zz'))


def read_one(ends, path, response, **more):
  row = {'prompt': 'p', 'response_ids': WORDS.encode(response)} | more
  (found,) = external.read_rows(
    write(path, [row]),
    vocab_size=262,
    task=ends.make_task(),
    encode=ends.encode,
  )
  return found


FORCED = 'ab. </think>'  # 2 of thought, 3 put there
CASES = [
  # response, null at, thought, forced, answer, end
  ('ab</think>1<|im_end|>', (), 2, False, 3, 4),
  ('ab</think>1<eos>', (), 2, False, 3, 4),
  ('ab<eos>', (), 2, False, 3, 2),
  ('ab<|im_end|>', (), 2, False, 3, 2),
  ('ab</think>1\nUser:', (), 2, False, 3, 9),
  ('ab</think>1zz', (), 2, False, 3, 5),
  # No ends: the start of one, one in the thought, one in what was forced.
  ('ab</think>1\nUser', (), 2, False, 3, None),
  ('abzz</think>1', (), 4, False, 5, None),
  ('az</think>z1', (), 2, False, 3, None),
  ('abzz', (), 4, False, 4, None),
  (FORCED + '1<eos>', (2, 3, 4), 2, True, 5, 6),
  (FORCED + '1zz', (2, 3, 4), 2, True, 5, 7),
  (FORCED, (2, 3, 4), 2, True, 5, None),
  # Not put there as a whole: what was drawn ends a thought by its marker.
  (FORCED + '1zz', (2, 3), 4, False, 5, 7),
]


@pytest.mark.parametrize('case', CASES, ids=range(len(CASES)))
def test_every_end_of_the_task_ends_a_row(case, ends, tmp_path):
  response, null, thought, forced, answer, end = case
  size = len(WORDS.encode(response))
  log_probs = [None if i in null else -1.0 for i in range(size)]
  path = tmp_path / 'x.jsonl'
  row = read_one(ends, path, response, log_probs=log_probs)
  answer = min(answer, size)
  assert row.parts == external.Parts(thought, forced, answer, end)
  group = external.Group((row,), {})
  batch = external.collate(
    [group], task=ends.make_task(), prompt_length=1, lengths=(size,)
  )
  assert batch['rollout/truncated'].tolist() == [[end is None]]
  if end is not None:
    how = {EOS: 'is the end-of-text', OTHER_END: 'ends a text'}.get(
      int(row.response[end]), 'completes a stop string'
    )
    with pytest.raises(ValueError, match='come behind it') as error:
      read_one(ends, path, response + 'xy', log_probs=[*log_probs, -1, -1])
    assert f'line 1: response token {end} {how} and 2 tokens' in str(
      error.value
    )


def test_a_row_is_cut_as_sampling_cuts_it(ends_with, tmp_path):
  """Random traces, of which stop strings of one or two letters end many."""
  kit = ends_with(stop_strings=('a', 'e', 'o', 'TH', '0', '1', '2', '3'))
  task = kit.make_task()
  assert task.end_ids == (EOS, OTHER_END)
  shape = tiny(vocab_size=262, num_layers=1)
  base = models.make_model(shape)

  def likely(params, tokens, positions, cache, mask=None):
    """Markers and ends often, so that traces have all their parts."""
    logits, cache = base.apply_fn(params, tokens, positions, cache, mask)
    return logits.at[..., jnp.array([CLOSE, EOS, OTHER_END])].add(3.0), cache

  sample = functools.partial(
    rollout.generate,
    Model(likely, base.init_cache),
    max_new_tokens=20,
    eos_id=task.eos_id,
    temperature=1.0,
    group_size=128,
    think_end_id=task.think_end_id,
    thinking_budget=8,
    stop_ids=task.stop_ids,
    stop_table=task.stop_table,
  )
  prompts = jnp.full((1, 2), 70)
  traces = jax.device_get(
    jax.jit(sample)(
      models.init_params(shape, jax.random.key(0)),
      prompts,
      prompts > 0,
      jax.random.key(1),
    )
  )
  rows = external.rows_of(traces, prompt_length=2, decode=kit.decode)
  found = external.read_rows(
    write(tmp_path / 'x.jsonl', rows),
    vocab_size=262,
    task=task,
    encode=kit.encode,
  )
  group = external.Group(tuple(found), {})
  batch = external.collate([group], task=task, prompt_length=2, lengths=(20,))
  given = steps.replay(None, batch, None)[0]
  for name in 'tokens mask thinking_mask token_mask truncated forced'.split():
    np.testing.assert_array_equal(
      getattr(given, name), getattr(traces, name), name
    )
  last = [row.response[-1] for row in found if row.parts.end is not None]
  thought = [row for row in found if row.parts.thought == row.parts.end]
  # All ways to end are among them.
  assert {EOS, OTHER_END} < set(last)
  assert thought
  assert 0.05 < traces.forced.mean() < 0.95
  assert 0.02 < traces.truncated.mean() < 0.98


# ---- problems


def refused(config, path, rows):
  with pytest.raises(ValueError) as error:
    load(config, write(path, rows))
  line = str(error.value)
  assert '\n' not in line
  assert len(line) < len(str(path)) + 330
  return line


def test_a_prompt_that_no_problem_has(config, texts, problems, tmp_path):
  path = tmp_path / 'x.jsonl'
  strange = [row | {'prompt': 'What is 1 + 1?'} for row in texts[:GROUP]]
  line = refused(config, path, texts[GROUP:] + strange)
  assert line.startswith(
    f'{path}, line 5: no problem of the train split has the prompt '
    "'What is 1 + 1?': sample from prompts of task.data"
  )
  question = problems[0]['question']
  bare = [row | {'prompt': question} for row in texts[:GROUP]]
  line = refused(config, path, texts[GROUP:] + bare)
  assert (
    'its prompt is not that of its problem: from character 0 on it is '
    f"'{question[:39]}…' and the task has '<|im_start|>user"
  ) in line
  opened = [row | {'prompt': row['prompt'] + '<think>'} for row in texts]
  line = refused(config, path, opened)
  size = len(texts[0]['prompt'])
  assert f"from character {size} on it is '<think>' and the task has ''" in line


def test_a_problem_of_another_split_is_none(config, kit, texts, tmp_path):
  (held_out, *_) = setup_run.load_problems(config, 'test')
  prompt = kit.decode(prompt_of(kit, held_out))
  rows = [row | {'prompt': prompt} for row in texts[:GROUP]] + texts[GROUP:]
  line = refused(config, tmp_path / 'x.jsonl', rows)
  assert 'line 1: no problem of the train split has the prompt' in line


def test_a_row_says_its_question(config, texts, problems, tmp_path):
  """Prompts of another template, at other white space."""
  rows = [
    row
    | {'prompt': f'Q{i // GROUP}'}
    | {'question': f' {problems[i // GROUP]["question"]}\n'}
    for i, row in enumerate(texts)
  ]
  batch, traces = load(config, write(tmp_path / 'named.jsonl', rows))
  plain, _ = load(config, write(tmp_path / 'text.jsonl', texts))
  np.testing.assert_array_equal(batch['gold'], plain['gold'])
  np.testing.assert_array_equal(batch['answers'], plain['answers'])
  assert batch['prompts'].shape == (PROMPTS, 2)
  # One row of a prompt is enough.
  few = [row if i % GROUP == 1 else texts[i] | {'prompt': row['prompt']}
         for i, row in enumerate(rows)]  # fmt: skip
  some, _ = load(config, write(tmp_path / 'few.jsonl', few))
  np.testing.assert_array_equal(some['gold'], plain['gold'])


def test_questions_that_cannot_be(config, texts, problems, tmp_path):
  path, first, second = tmp_path / 'x.jsonl', problems[0], problems[1]
  named = [row | {'question': 'What?'} for row in texts[:GROUP]]
  line = refused(config, path, named + texts[GROUP:])
  assert (
    'line 1: no problem of the train split has the "question" \'What?\''
  ) in line
  other = [row | {'question': second['question']} for row in texts[:GROUP]]
  line = refused(config, path, other + texts[GROUP:])
  assert 'is not that of the prompt, ' in line
  assert first['question'][:30] in line
  two = [
    texts[0] | {'question': first['question']},
    *texts[1:3],
    texts[3] | {'question': second['question']},
  ]
  line = refused(config, path, two + texts[GROUP:])
  assert 'line 1: the "question" of its prompt is another one in line 4' in line


def test_padding_on_the_left_is_taken_off(config, texts, tmp_path):
  rows = [as_ids(row) for row in texts]
  wanted = load(config, write(tmp_path / 'ids.jsonl', rows))
  for i, row in enumerate(rows):
    row['prompt_ids'] = [PAD] * (i % 3) + row['prompt_ids']
  found = load(config, write(tmp_path / 'padded.jsonl', rows))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  rows[0]['prompt_ids'] = [PAD] * 3
  line = refused(config, tmp_path / 'x.jsonl', rows)
  assert 'line 1: the prompt is padding alone (token 0)' in line


def test_padding_that_begins_every_prompt(tmp_path, ends):
  """As of vocabularies whose bos is their padding too."""
  words = text_tokenizer.TextTokenizer(WORDS.tokenizer, EOS, PAD, bos_id=PAD)
  encode = lambda text, is_prompt=False: (
    words.encode_prompt(text) if is_prompt else words.encode(text)
  )
  rows = [
    {'prompt_ids': [PAD] * n + [70, PAD, 71], 'response': 'a'} for n in range(4)
  ]
  found = external.read_rows(
    write(tmp_path / 'x.jsonl', rows),
    vocab_size=262,
    task=ends.make_task(),
    encode=encode,
  )
  assert [row.prompt for row in found] == [
    (70, PAD, 71),
    *[(PAD, 70, PAD, 71)] * 3,
  ]


def test_an_answer_that_is_not_graded_whole(config, texts, tmp_path, caplog):
  load(config, write(tmp_path / 'text.jsonl', texts))
  assert not caplog.messages
  long = [*texts[:3], texts[3] | {'response': 'a</think>' + '1+' * 9}]
  load(config, write(tmp_path / 'x.jsonl', long + texts[GROUP:]))
  (line,) = caplog.messages
  assert (
    'x.jsonl: 1 of 8 answers have more than task.answer_length=16 tokens (line '
    '4: 18), of which the first are graded'
  ) in line


def test_rewards_of_the_rows_ask_for_no_problem(config, texts, tmp_path):
  """A question in such a row is left alone, as any other key is."""
  rows = [
    row | {'prompt': f'p{i // GROUP}', 'reward': i, 'question': str(i)}
    for i, row in enumerate(texts)
  ]
  path = write(tmp_path / 'rewards.jsonl', rows)
  batch, traces = load(config, path, **{'external.reward': 'row'})
  assert sorted(batch['rollout/rewards'].ravel().tolist()) == list(range(8))
  assert 'gold' not in batch
  assert traces.thinking_mask.any(1).all()
