"""Supervised fine-tuning: buckets, the loss, resume."""

import collections
import json
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import counting_model

from meta_rl import (
  data,
  guards,
  held_out,
  setup_run,
  sft,
  signals,
  tasks,
  weights,
)
from meta_rl.tasks import countdown

pytest_plugins = ['small_runs']


class Numbers:
  """An iterator of first, first + 1, … with its place as its state."""

  def __init__(self, first):
    self.place = first

  def __next__(self):
    self.place += 1
    return self.place - 1

  def get_state(self):
    return {'place': self.place}

  def set_state(self, state):
    self.place = state['place']


def test_buckets_go_round_their_pattern_and_resume():
  make = lambda: sft.Buckets([Numbers(0), Numbers(100)], (0, 0, 1))
  batches = make()
  assert [next(batches) for _ in range(5)] == [0, 1, 100, 2, 3]
  state = json.loads(json.dumps(batches.get_state()))
  rest = [next(batches) for _ in range(4)]
  assert rest == [101, 4, 5, 102]
  again = make()
  again.set_state(state)
  assert [next(again) for _ in range(4)] == rest


def test_buckets_refuse_the_state_of_others():
  state = sft.Buckets([Numbers(0), Numbers(1)], (0, 1)).get_state()
  with pytest.raises(ValueError):
    sft.Buckets([Numbers(0)], (0,)).set_state(state)


def test_batches_of_the_config(small):
  config = small.config('sft')
  batches = sft.make_batches(config)
  short, long = next(batches), next(batches)
  buckets = config.data.buckets
  for batch, bucket in ((short, buckets.short), (long, buckets.long)):
    assert batch['tokens'].shape == (bucket.batch_size, bucket.length)
    assert (batch['positions'] >= 0).mean() > 0.8  # packed
  again = sft.make_batches(config)
  assert np.array_equal(next(again)['tokens'], short['tokens'])


def test_batches_are_traces_of_the_kit(small, monkeypatch):
  """Whatever task it is: what is trained comes from its `TaskKit`."""
  config = small.config('sft')
  config.task = {'name': 'echo', 'n': 4}
  config.data.traces = {'shout': 2}
  seen = []

  def trace_problems(source, *, shown, **options):
    seen.append((source, shown, options))
    return [5, 6]

  def sample_traces(problems, rng, count, *, shout, **rest):
    word = problems[rng.integers(len(problems))] + shout
    mask = np.array([False, True, False])
    return [(np.full(3, word, np.int32), mask)] * count

  kit = tasks.TaskKit(
    make_task=None,
    load_source=lambda folder, split, **options: (split, options),
    record_arrays=None,
    cluster_key=None,
    trace_problems=trace_problems,
    sample_traces=sample_traces,
    max_trace_length=lambda problems, **options: 3,
    decode=None,
    encode=None,
    vote=None,
  )
  monkeypatch.setitem(tasks.TASKS, 'echo', kit)
  batch = next(sft.make_batches(config))
  assert seen == [(('train', {'n': 4}), None, {'n': 4})]
  real = batch['positions'] >= 0
  assert set(batch['tokens'][real].tolist()) == {7, 8}
  # One trained token a trace, in the middle.
  assert batch['loss_mask'].sum() == real.sum() / 3
  assert (batch['positions'][batch['loss_mask']] == 1).all()


def test_loss_is_the_mean_negative_log_likelihood_of_completions():
  """A model that knows only how many 7s it has seen, so the loss is by hand."""
  logits = np.zeros((3, 8), np.float32)
  logits[1, 2], logits[2, 3] = 1.0, 2.0
  # Two traces in one row: each sees its own 7s alone.
  examples = [(np.array([7, 2, 2]), 1), (np.array([7, 7, 3, 3]), 2)]
  batch = data.pack(examples, 8)
  loss, _ = sft.make_loss(counting_model())(jnp.asarray(logits), batch)
  # Trace 1 predicts 2 and 2 after one 7: log p = 1 - log(7 + e), twice.
  # Trace 2 predicts 3 and 3 after two 7s: log p = 2 - log(7 + e^2), twice.
  one = math.log(7 + math.e) - 1
  two = math.log(7 + math.e**2) - 2
  assert float(loss.weight) == 4
  assert float(loss.value) == pytest.approx((2 * one + 2 * two) / 4, rel=1e-5)


def test_prompt_and_padding_have_no_gradient():
  examples = [(np.array([7, 2, 2]), 1)]
  batch = {k: jnp.asarray(v) for k, v in data.pack(examples, 6).items()}
  loss_fn = sft.make_loss(counting_model())
  grad = jax.grad(lambda p: loss_fn(p, batch)[0].total)(jnp.zeros((3, 8)))
  # One 7 is seen wherever something is predicted; row 0 and row 2 never.
  assert not np.any(grad[0])
  assert np.any(grad[1])
  assert not np.any(grad[2])


def stop_after(monkeypatch, step):
  """Sends SIGTERM as the `step`-th batch is drawn."""
  real, seen = sft.Buckets.__next__, []

  def draw(self):
    seen.append(None)
    if len(seen) == step:
      signal.raise_signal(signal.SIGTERM)
    return real(self)

  monkeypatch.setattr(sft.Buckets, '__next__', draw)


@pytest.fixture(scope='module')
def straight(small, tmp_path_factory):
  """Four steps without a stop."""
  config = small.config('sft', checkpoint__every=3)
  return small.run(config, tmp_path_factory.mktemp('sft') / 'run')


def test_four_steps(straight):
  assert straight.code == signals.EXIT_OK, straight.err
  assert [row['step'] for row in straight.rows] == [1, 2, 3, 4]
  # ln(128) = 4.85 nats a token of a policy that knows nothing.
  losses = [row['loss/total'] for row in straight.rows]
  assert losses[0] == pytest.approx(math.log(128), abs=0.3)
  assert losses[-1] < losses[0]
  # The pattern is short, long: one program each; then evaluation's two.
  assert [row['compile/count'] for row in straight.rows] == [1, 4, 4, 4]
  assert 'eval/regret_token_weighted' in straight.rows[3]
  assert 'eval/regret_token_weighted' not in straight.rows[2]


@pytest.mark.soak
@pytest.mark.full
def test_one_state_is_alive(small, tmp_path, monkeypatch):
  """What it was made of, or restored into, is let go."""
  config = small.config('sft', checkpoint__every=3)
  found, real = [], guards.check_finite

  def count(*args):
    found.append(small.live_copies(config) - before)
    real(*args)

  monkeypatch.setattr(guards, 'check_finite', count)
  with monkeypatch.context() as patch:
    stop_after(patch, 1)
    before = small.live_copies(config)
    stopped = small.run(config, tmp_path / 'run')
  assert stopped.code == signals.EXIT_INTERRUPTED, stopped.err
  before = small.live_copies(config)
  resumed = small.run(config, tmp_path / 'run')
  assert resumed.code == signals.EXIT_OK, resumed.err
  # Parameters, and Adam's two means of them; the first step, then the others.
  assert found == [3] + [3] * 3


def test_two_and_two_steps_are_four_bit_for_bit(
  small, straight, tmp_path, monkeypatch
):
  config = small.config('sft', checkpoint__every=3)
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:
    stop_after(patch, 2)
    stopped = small.run(config, folder)
  assert stopped.code == signals.EXIT_INTERRUPTED
  assert 'after step 2, which is saved' in stopped.err
  resumed = small.run(config, folder)
  assert resumed.code == signals.EXIT_OK
  assert 'resuming after step 2 of 4' in resumed.out
  untimed = lambda rows: [
    {k: v for k, v in r.items() if not k.startswith(('time/', 'compile/'))}
    for r in rows
  ]
  assert untimed(resumed.rows) == untimed(straight.rows)
  like = setup_run.abstract_params(config)
  params = [
    weights.init_from(f'{run.folder}@last', like) for run in (resumed, straight)
  ]
  assert small.equal(*params)
  assert not small.equal(params[0], setup_run.initial_params(config))


def test_chats_from_a_file(small, tmp_path):
  """Prompt and completion pairs of the task's own words."""
  lines = [
    {'prompt': f'<bos> {a} {b} 1 = {a + b - 1} <think>',
     'completion': f'</think> {a} {b} + 1 -'}
    for a in range(5, 9) for b in range(1, 5)
  ]  # fmt: skip
  path = tmp_path / 'chats.jsonl'
  path.write_text('\n'.join(map(json.dumps, lines)) + '\n')
  config = small.config('sft', data__source='jsonl', data__path=str(path))
  batch = next(sft.make_batches(config))
  assert batch['tokens'].shape == (8, 160)
  # 8 tokens of prompt, 6 of completion, EOS.
  assert batch['loss_mask'].sum() == 7 * (batch['positions'] == 0).sum()


def test_profiling_is_for_reinforcement(small, tmp_path):
  result = small.run(small.config('sft'), tmp_path / 'run', profile_steps='1:2')
  assert result.code == signals.EXIT_ERROR
  assert 'profile_steps' in result.err


def test_held_out_problems_are_not_trained_on(small):
  config = small.config('sft')
  key = lambda r: (*sorted(np.asarray(r['numbers']).tolist()), int(r['target']))
  splits = [
    {key(r) for r in setup_run.load_problems(config, split)}
    for split in countdown.SPLITS
  ]
  train, validation, test = splits
  assert not train & validation
  assert not train & test
  assert not validation & test
  batches = held_out.problem_batches(
    setup_run.load_problems(config, 'validation'),
    record_arrays=countdown.record_arrays,
    num_problems=16,
    batch_size=8,
  )
  assert len(batches) == 2


def chats(small, path, sizes, **changes):
  """A config whose examples have so many tokens, of which one is prompt."""
  lines = [
    {'prompt': '1', 'completion': ' '.join(['2'] * (size - 2))}
    for size in sizes
  ]
  path.write_text('\n'.join(map(json.dumps, lines)))
  return small.config(
    'sft', data__source='jsonl', data__path=str(path), **changes
  )


def sizes_of(batch):
  """How often each size of an example stands in a batch."""
  return collections.Counter(
    int((own == segment).sum())
    for own in batch['segment_ids']
    for segment in range(own.max() + 1)
  )


def test_rows_hold_every_example_that_fits_them(small, tmp_path):
  """Long rows hold short examples too, each as often as the long one."""
  sizes = [12] * 40 + [202]
  config = chats(small, tmp_path / 'chats.jsonl', sizes)
  assert config.data.pattern == ('short', 'long')
  batches = sft.make_batches(config)
  short, long = next(batches), next(batches)
  assert set(sizes_of(short)) == {12}
  # 40 x 12 + 202 = 682 tokens, two rows of 448; 8 rows are four epochs.
  assert sizes_of(long) == {12: 160, 202: 4}


def test_rows_outside_the_pattern_take_no_examples(small, tmp_path):
  path = tmp_path / 'chats.jsonl'
  # Only long rows are drawn: all examples come from them.
  config = chats(small, path, [12] * 40 + [202], data__pattern=('long',))
  assert set(sizes_of(next(sft.make_batches(config)))) == {12, 202}
  # Only short ones: an example that they cannot hold is not left out silently.
  config = chats(small, path, [12] * 40 + [202], data__pattern=('short',))
  with pytest.raises(ValueError, match='line 41: 202 tokens, at most 160'):
    sft.make_batches(config)


def test_rows_too_short_for_every_example_are_named(small, tmp_path):
  path = tmp_path / 'chats.jsonl'
  config = chats(small, path, [302, 202])
  with pytest.raises(
    ValueError, match='buckets.short.length=160.* shortest example has 202'
  ):
    sft.make_batches(config)
  config = chats(small, path, [302, 202], data__pattern=('long',))
  assert set(sizes_of(next(sft.make_batches(config)))) == {302, 202}


def test_an_example_that_fits_no_row_is_named_by_its_line(small, tmp_path):
  path = tmp_path / 'chats.jsonl'
  lines = [{'prompt': '1', 'completion': ' '.join(['2'] * n)} for n in (1, 500)]
  path.write_text('\n'.join(map(json.dumps, lines)))
  config = small.config('sft', data__source='jsonl', data__path=str(path))
  with pytest.raises(ValueError, match='line 2: 502 tokens, at most 448'):
    sft.make_batches(config)
