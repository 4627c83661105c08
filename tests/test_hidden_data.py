"""Problems and warm-start traces of Hidden."""

import numpy as np
import pytest

from meta_rl import tokenizer
from meta_rl.tasks import hidden_data

OPTIONS = {'n': 5, 'num_problems': 80}
YES, NO = tokenizer.YES, tokenizer.NO


def test_splits_partition_the_indices():
  parts = [
    hidden_data.problem_set(split, **OPTIONS)
    for split in ('train', 'validation', 'test')
  ]
  # Four, one and three eighths of 80.
  assert [len(part) for part in parts] == [40, 10, 30]
  assert [index for part in parts for index, _ in part] == list(range(80))
  # A size that eighths do not divide: none is lost.
  sizes = [
    len(hidden_data.problem_set(split, n=5, num_problems=83))
    for split in ('train', 'validation', 'test')
  ]
  assert sum(sizes) == 83


def test_a_slice_of_whole_blocks_is_balanced():
  options = [h for _, h in hidden_data.problem_set('train', **OPTIONS)]
  blocks = np.reshape(options, (8, 5))
  np.testing.assert_array_equal(np.sort(blocks), np.tile(np.arange(5), (8, 1)))
  assert len(np.unique(blocks, axis=0)) > 4  # in random order
  again = [h for _, h in hidden_data.problem_set('train', **OPTIONS)]
  other = [h for _, h in hidden_data.problem_set('train', **OPTIONS, seed=1)]
  assert options == again != other


def test_records_are_the_problems(tmp_path):
  for split in ('train', 'validation', 'test'):
    source = hidden_data.load_source(tmp_path, split, **OPTIONS)
    found = [
      (int(record['index']), int(record['hidden']))
      for record in (source[i] for i in range(len(source)))
    ]
    assert found == hidden_data.problem_set(split, **OPTIONS)
  assert int(source[0]['n']) == 5
  problems = hidden_data.trace_problems(source, **OPTIONS)
  assert problems == [(5, option) for _, option in found]


def test_arrays_of_a_record():
  record = {'n': 5, 'hidden': 3, 'index': 17}
  arrays = hidden_data.record_arrays(record)
  assert tokenizer.decode(arrays['prompts']) == '<bos> 5 = <think>'
  assert tokenizer.decode(arrays['answers'][0]) == '3 <eos>'
  assert arrays['hidden'] == 3
  # The prompt says nothing about the hidden option.
  other = hidden_data.record_arrays(record | {'hidden': 4})
  np.testing.assert_array_equal(arrays['prompts'], other['prompts'])
  assert hidden_data.cluster_key(record) == 'problem 17: 3 of 5'


def test_every_option_is_in_the_name():
  changes = {'n': 9, 'num_problems': 16, 'seed': 1}
  names = {
    hidden_data.make_config(**{key: value}).name
    for key, value in changes.items()
  }
  assert len(names | {hidden_data.make_config().name}) == 4


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: hidden_data.make_config(m=3), r"unknown Hidden options \['m'\]"),
    (lambda: hidden_data.make_config(n=100), 'n=100 options'),
    (lambda: hidden_data.make_config(num_problems=7), 'num_problems=7'),
    (lambda: hidden_data.trace_problems([], shown=2), 'data.orders=2'),
    (
      lambda: hidden_data.sample_traces([], np.random.default_rng(0), 1),
      'no problems',
    ),
    (
      lambda: hidden_data.sample_trace(
        (5, 3), np.random.default_rng(0), p_stop=2.0
      ),
      'each must be in',
    ),
  ],
)
def test_bad_arguments(call, message):
  with pytest.raises(ValueError, match=message):
    call()


# --- traces ---


def sample(count, problem=(5, 3), **options):
  """Returns (tries, verdicts, answer) of many traces, their form checked."""
  rng = np.random.default_rng(0)
  rows = []
  for tokens, loss in hidden_data.sample_traces(
    [problem], rng, count, **options
  ):
    assert tokens.dtype == np.int32
    words = tokens.tolist()
    assert tokenizer.decode(words[:4]) == '<bos> 5 = <think>'
    assert words[-1] == tokenizer.EOS
    assert words[-3] == tokenizer.END_THINK
    thought = np.reshape(words[4:-3], (-1, 2)).astype(np.int32)
    # Tries, marker, answer and EOS are trained; prompt and verdicts are not.
    trained = [False] * 4 + [True, False] * len(thought) + [True] * 3
    assert loss.tolist() == trained
    tries = thought[:, 0] - tokenizer.FIRST_INTEGER
    rows.append((tries, thought[:, 1], words[-2] - tokenizer.FIRST_INTEGER))
  return rows


def test_tries_are_uniform_and_verdicts_true():
  rows = sample(3000)
  tries = np.concatenate([row[0] for row in rows])
  share = np.bincount(tries, minlength=5) / len(tries)
  # Over 8,000 tries: standard deviation 0.0045. Repeats are as frequent.
  assert len(tries) > 8000
  np.testing.assert_allclose(share, 0.2, atol=4 * 0.0045)
  repeats = np.concatenate([row[0][1:] == row[0][:-1] for row in rows])
  assert repeats.mean() == pytest.approx(0.2, abs=0.03)
  for tried, verdicts, answer in rows:
    np.testing.assert_array_equal(verdicts, np.where(tried == 3, YES, NO))
    if (tried == 3).any():
      assert answer == 3


def test_when_they_stop():
  rows = sample(4000)
  lengths = np.array([len(tried) for tried, _, _ in rows])
  assert np.mean(lengths == 0) == pytest.approx(0.1, abs=0.02)
  assert lengths.max() == 8
  inside = [(t == 3) for t, _, _ in rows if 1 <= len(t) < 8]
  found = np.array([hit.any() for hit in inside])
  # Gives up with s = 0.08 after a failure, finds with q = 0.2: before a success
  # stops (1 - q) s / (q + (1 - q) s) = 0.24 of those that run on.
  assert 1 - found.mean() == pytest.approx(0.24, abs=0.04)
  late = [len(hit) - 1 > hit.argmax() for hit in inside if hit.any()]
  assert np.mean(late) == pytest.approx(0.25, abs=0.05)
  long = sample(50, long_share=1.0, direct_share=0.0, max_episodes=10)
  assert {len(tried) for tried, _, _ in long} == {9, 10}


@pytest.mark.parametrize('chance', [0.0, 1.0])
def test_informed_guesses(chance):
  rows = sample(
    3000, p_informed=chance, p_stop=1.0, p_continue=0.0, direct_share=0.0
  )
  # One try each; where it failed the guess is uniform, of all or of the rest.
  failed = [(tried[0], answer) for tried, _, answer in rows if tried[0] != 3]
  again = np.mean([tried == answer for tried, answer in failed])
  right = np.mean([answer == 3 for _, answer in failed])
  assert len(failed) > 2200
  assert again == pytest.approx(
    0.0 if chance else 0.2, abs=0.035 - 0.035 * chance
  )
  assert right == pytest.approx(0.25 if chance else 0.2, abs=0.035)
  # Every option tried: nothing is left to be informed of.
  rng = np.random.default_rng(0)
  assert 0 <= hidden_data._guess(2, np.array([0, 1]), rng, 1.0) < 2


def test_same_state_same_traces():
  one, other = (
    hidden_data.sample_traces([(5, 3), (5, 4)], np.random.default_rng(3), 9)
    for _ in range(2)
  )
  for (a, i), (b, j) in zip(one, other, strict=True):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(i, j)
