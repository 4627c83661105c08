"""Where tokens are wasted: categories, classes and shares by hand."""

import numpy as np
import pytest

from meta_rl import waste

# Five traces, at most four episodes, ends[:, 0] is column 1, tokens from 2 on.
# 0: succeeds at boundary 1, goes on, loses it, repeats episode 0, stops.
# 1: the budget cuts it off in the middle of a repeat; no success.
# 2: gives up at once.
# 3: succeeds at the last boundary, late; repeats before that.
# 4: right without a thought.
TOKENS = np.array(
  [
    [0, 9, 1, 2, 3, 4, 5, 1, 2, 0, 0, 0],
    [0, 9, 6, 7, 8, 6, 7, 0, 0, 0, 0, 0],
    [0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 9, 4, 4, 4, 4, 4, 4, 5, 5, 0, 0],
    [0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  ]
)
FOUND = {
  'tokens': TOKENS,
  'success': np.array(
    [
      [0.10, 0.60, 0.61, 0.30, 0.30],
      [0.50, 0.45, 0.46, 0.46, 0.46],
      [0.20, 0.20, 0.20, 0.20, 0.20],
      [0.10, 0.30, 0.20, 0.20, 0.90],
      [0.80, 0.80, 0.80, 0.80, 0.80],
    ]
  ),
  'ends': np.array(
    [
      [1, 3, 6, 8, 8],
      [1, 4, 6, 6, 6],
      [1, 1, 1, 1, 1],
      [1, 3, 5, 7, 9],
      [1, 1, 1, 1, 1],
    ]
  ),
  'count': np.array([3, 2, 0, 4, 0]),
  'forced': np.array([False, True, False, False, False]),
}
CLUSTERS = np.arange(5)


def test_first_success():
  found = waste.first_success(FOUND['success'], FOUND['count'])
  # Trace 1 begins at .5 exactly, which is none.
  assert found.tolist() == [1, -1, -1, 4, 0]


def test_what_repeats_past_the_count_is_no_success():
  assert waste.first_success([[0.1, 0.9]], [0]).tolist() == [-1]
  assert waste.first_success([[0.1, 0.9]], [1]).tolist() == [1]


def test_categories_by_hand():
  found = waste.episode_categories(FOUND)
  marked = {
    name: [np.flatnonzero(row).tolist() for row in rows]
    for name, rows in found.items()
  }
  assert tuple(marked) == waste.CATEGORIES
  assert marked == {
    'after_success': [[1, 2], [], [], [], []],
    # Trace 1's last episode, 6 7, is not yet 6 7 8.
    'repeated': [[2], [], [], [1, 2], []],
    'negative_progress': [[2], [0], [], [1], []],
    'no_progress': [[1], [1], [], [2], []],
  }


@pytest.mark.parametrize(
  ('after', 'category'),
  [
    (0.02, None),
    (0.0199, 'no_progress'),
    (0.0, 'no_progress'),
    (-0.0199, 'no_progress'),
    (-0.02, 'negative_progress'),
  ],
)
def test_where_progress_becomes_none_and_negative(after, category):
  start = max(0.0, -after)  # one of the two is 0: no rounding
  found = waste.episode_categories(
    {
      'tokens': np.array([[1, 2, 3]]),
      'success': np.array([[start, start + after]]),
      'ends': np.array([[0, 2]]),
      'count': np.array([1]),
    }
  )
  assert [n for n, rows in found.items() if rows.any()] == (
    [category] if category else []
  )


def test_repeats():
  assert waste.repeats(['a', 'b', 'a', 'a', 'ab']) == [
    *(False, False, True, True, False)
  ]
  assert waste.repeats([(), (), (1,)]) == [False] * 3
  assert waste.repeats([]) == []


def classes(horizon=12, **changes):
  names = ('success', 'ends', 'count', 'forced')
  found = [(FOUND | changes)[name] for name in names]
  return waste.trace_classes(*found, horizon=horizon)


def test_classes_by_hand():
  # Trace 0 had a success, and stops by itself without one; trace 3's comes
  # after 8 tokens, which is not more than 2/3 of 12.
  expected = [['wasted', 'given up'], [], ['given up'], [], []]
  assert classes(12) == expected
  expected[3] = ['solved late']
  assert classes(11) == expected
  # Who is stopped does not give up.
  assert classes(forced=np.ones(5, bool)) == [['wasted'], [], [], [], []]


def test_summary_by_hand():
  found = waste.summary(FOUND, horizon=11, clusters=CLUSTERS)
  # 7 + 5 + 0 + 8 + 0 = 20 tokens of thinking, in 5 traces.
  assert found['tokens']['mean'] == pytest.approx(4)
  spent = {
    'after_success': 3 + 2,
    'repeated': 2 + 2 + 2,
    'negative_progress': 2 + 3 + 2,
    'no_progress': 3 + 2 + 2,
    # All of trace 0 but its first episode, all of 1, the middle of 3.
    'any': 5 + 5 + 4,
  }
  assert list(found['categories']) == list(spent)
  for name, tokens in spent.items():
    entry = found['categories'][name]
    assert entry['tokens']['mean'] == pytest.approx(tokens / 5), name
    assert entry['share']['mean'] == pytest.approx(tokens / 20), name
    for interval in (entry['tokens'], entry['share']):
      assert interval['low'] < interval['mean'] < interval['high']
  assert found['categories']['repeated']['episodes'] == pytest.approx(3 / 5)
  # Once each: trace 0's repeat is after the success, and trace 3's first repeat
  # no more a loss of J.
  assert found['split'] == pytest.approx(
    {
      'after_success': 5 / 20,
      'repeated': 4 / 20,
      'negative_progress': 3 / 20,
      'no_progress': 2 / 20,
      'rest': 6 / 20,
    }
  )
  shares = {name: entry['mean'] for name, entry in found['classes'].items()}
  assert shares == pytest.approx(
    {'wasted': 1 / 5, 'given up': 2 / 5, 'solved late': 1 / 5}
  )
  assert (found['solved_above'], found['flat_below']) == (0.5, 0.02)


def test_intervals_are_over_problems():
  # Two prompts of one problem, twice: as sure as two, not as four.
  twice = {name: np.concatenate([v, v]) for name, v in FOUND.items()}
  apart, together = (
    waste.summary(twice, horizon=11, clusters=clusters)['categories']['any']
    for clusters in (np.arange(10), np.tile(CLUSTERS, 2))
  )
  width = lambda entry: entry['share']['high'] - entry['share']['low']
  assert apart['share']['mean'] == together['share']['mean']
  assert width(apart) < 0.9 * width(together)
  one = waste.summary(FOUND, horizon=11, clusters=np.zeros(5))
  for entry in one['categories'].values():
    share = entry['share']
    assert share['low'] == pytest.approx(share['mean'])
    assert share['high'] == pytest.approx(share['mean'])


def by_loop(found, horizon):
  """Returns tokens of each category and the classes, token by token."""
  spent = dict.fromkeys((*waste.CATEGORIES, 'any', 'all'), 0)
  listed = []
  for i, count in enumerate(found['count']):
    j_values, ends = found['success'][i], found['ends'][i]
    solved_at, seen, wasted, late = None, [], False, False
    for j in range(count + 1):
      if solved_at is None and j_values[j] > 0.5:
        solved_at = ends[j] - ends[0]
        late = solved_at > 2 * horizon / 3
      if j == count:
        break
      text = found['tokens'][i, ends[j] + 1 : ends[j + 1] + 1].tolist()
      moved = float(j_values[j + 1]) - float(j_values[j])
      kinds = {
        'after_success': solved_at is not None,
        'repeated': text in seen,
        'negative_progress': moved <= -0.02,
        'no_progress': -0.02 < moved < 0.02,
      }
      kinds |= {'any': any(kinds.values()), 'all': True}
      wasted |= kinds['after_success']
      for name, holds in kinds.items():
        spent[name] += len(text) * holds
      seen.append(text)
    gave_up = not found['forced'][i] and j_values[count] <= 0.5
    holds = zip(waste.CLASSES, (wasted, gave_up, late))
    listed.append([name for name, held in holds if held])
  return spent, listed


def test_many_traces_against_a_loop():
  rng = np.random.default_rng(0)
  rows, episodes = 200, 6
  count = rng.integers(0, episodes + 1, rows)
  lengths = rng.integers(1, 4, (rows, episodes))
  lengths[np.arange(episodes) >= count[:, None]] = 0
  ends = 2 + np.cumsum(np.pad(lengths, ((0, 0), (1, 0))), 1)
  success = rng.choice([0.1, 0.11, 0.49, 0.5, 0.51, 0.9], (rows, episodes + 1))
  last = np.minimum(np.arange(episodes + 1), count[:, None])
  found = {
    'tokens': rng.integers(0, 2, (rows, 24)),
    'success': np.take_along_axis(success, last, 1).astype(np.float32),
    'ends': ends,
    'count': count,
    'forced': rng.uniform(size=rows) < 0.3,
  }
  spent, listed = by_loop(found, 12)
  result = waste.summary(found, horizon=12, clusters=np.arange(rows))
  total = spent.pop('all')
  assert result['tokens']['mean'] == pytest.approx(total / rows)
  for name, tokens in spent.items():
    entry = result['categories'][name]
    assert entry['tokens']['mean'] == pytest.approx(tokens / rows), name
    assert entry['share']['mean'] == pytest.approx(tokens / total), name
    assert tokens > 0
  assert sum(result['split'].values()) == pytest.approx(1)
  assert result['split']['rest'] == pytest.approx(1 - spent['any'] / total)
  names = ('success', 'ends', 'count', 'forced')
  assert waste.trace_classes(*map(found.get, names), horizon=12) == listed
  assert {name for own in listed for name in own} == set(waste.CLASSES)


def test_without_a_thought_there_is_no_share():
  found = {name: v[[2, 4]] for name, v in FOUND.items()}
  result = waste.summary(found, horizon=11, clusters=np.arange(2))
  assert result['tokens']['mean'] == 0
  assert set(result['split'].values()) == {None}
  for entry in result['categories'].values():
    assert entry['share'] is None
    assert entry['tokens']['mean'] == entry['episodes'] == 0
  assert result['classes']['given up']['mean'] == 0.5


def test_a_share_that_few_problems_do_not_settle_has_no_interval():
  # One of two traces thinks: a quarter of the resamples have no token at all.
  found = {name: v[[0, 2]] for name, v in FOUND.items()}
  result = waste.summary(found, horizon=11, clusters=np.arange(2))
  share = result['categories']['any']['share']
  assert share == {'mean': pytest.approx(5 / 7), 'low': None, 'high': None}


def test_some_of_each_class_are_chosen():
  listed = [[]] * 100
  listed[70] = ['wasted', 'given up']
  listed[80] = ['wasted']
  listed[90] = ['solved late']
  # In turns: 70 wasted; given up has none left; 90; 3; 80; and then the rest.
  assert waste.chosen(listed, limit=6, first=3) == [0, 1, 2, 3, 70, 90]
  assert waste.chosen(listed, limit=8, first=3) == [0, 1, 2, 3, 4, 70, 80, 90]
  assert waste.chosen(listed) == [*range(45), 70, 80, 90]
  # A class that the first ones hold already gets more of its own.
  listed[0] = ['solved late']
  assert 90 in waste.chosen(listed, limit=6, first=3)
  assert waste.chosen(listed[:10]) == list(range(10))
  assert waste.chosen([]) == []


def test_rejections():
  with pytest.raises(ValueError, match=r'limit=5: at least first \+ 3 = 6'):
    waste.chosen([[]], limit=5, first=3)
  with pytest.raises(ValueError, match=r'\[N,K\+1\] and \[N\]'):
    waste.first_success(np.zeros(3), np.zeros(3))
  with pytest.raises(ValueError, match=r'\[N,K\+1\] and \[N\]'):
    waste.first_success(np.zeros((3, 2)), np.zeros(2))
  with pytest.raises(ValueError, match=r'ends \(5, 4\) must be'):
    waste.episode_categories(FOUND | {'ends': FOUND['ends'][:, 1:]})
  with pytest.raises(ValueError, match=r'and forced \(3,\) must be'):
    classes(forced=np.zeros(3, bool))
  with pytest.raises(ValueError, match='horizon=0: it must be above 0'):
    classes(horizon=0)
