"""What the report decides about a trace, by hand."""

import numpy as np
import pytest

from meta_rl import report_views, runs


def trace_of(levels, *, start=0.1, texts=None, **more):
  """An entry of 'traces': an episode of 10 tokens for each level of J."""
  texts = texts or [f'try {i}' for i in range(len(levels))]
  # Progress is left out: it follows from J.
  episodes = [
    {'text': text, 'success': level, 'tokens': 10}
    for text, level in zip(texts, levels)
  ]
  trace = {'prompt': 'p', 'success_start': start, 'episodes': episodes}
  return trace | {'answer': 'a', 'reward': 1.0, 'stopped': 'policy'} | more


def view(*args, horizon=60, **more):
  return report_views.view(trace_of(*args, **more), horizon=horizon)


@pytest.mark.parametrize(
  ('progress', 'name'),
  [
    (0.0, 'z'),
    (0.019, 'z'),
    (0.02, 'p1'),
    (-0.02, 'n1'),
    (0.1, 'p2'),
    (-0.3, 'n3'),
    (0.6, 'p4'),
    (-1.0, 'n4'),
    (float('nan'), 'z'),
  ],
)
def test_shade(progress, name):
  assert report_views.shade(progress) == name


def test_a_trace_by_hand():
  shown = view(
    [0.05, 0.75, 0.75, 0.375],
    texts=['x', 'y', 'x', 'y'],
    stops={'late': 4, 'soon': 1, 'also': 1},
  )
  assert [row.shade for row in shown.rows] == ['n1', 'p4', 'z', 'n3']
  assert [row.progress for row in shown.rows] == [
    *('−0.05', '+0.70', '0.00', '−0.38')
  ]
  assert [row.success for row in shown.rows] == ['0.05', '0.75', '0.75', '0.38']
  assert [row.notes for row in shown.rows] == [
    *([], [], ['after success', 'repeat'], ['after success', 'repeat'])
  ]
  assert (shown.start, shown.stopped) == (
    '0.10',
    'stopped by itself, 40 tokens',
  )
  assert shown.stops == [(1, 'soon · also stops here'), (4, 'late stops here')]
  assert (shown.answer, shown.verdict) == ('a', '✓ right')
  # Ten of 60 tokens are 50 of 300; J = .75 lies 46/4 below the top, at 2.
  assert shown.chart.points == (
    '0.0,43.4 50.0,43.4 50.0,45.7 100.0,45.7 100.0,13.5 150.0,13.5 150.0,13.5'
    ' 200.0,13.5 200.0,30.8 300,30.8'
  )
  assert (shown.chart.stop, shown.chart.marks) == ('200.0', ['50.0', '200.0'])
  assert shown.chart.label == 'J rises from 0.10 to 0.38 over 40 of 60 tokens'


def test_classes_follow_from_j_where_they_are_not_stated():
  assert view([0.9, 0.1]).classes == ['wasted', 'given up']
  assert view([0.2], stopped='budget').classes == []
  assert view([0.2], stopped='who knows').classes == []
  # First success after 10 of 14 tokens, more than two thirds.
  assert view([0.9], horizon=14).classes == ['solved late']
  assert view([0.9], horizon=15).classes == []
  # What is stated counts, as far as it is a class.
  stated = view([0.9], classes=['solved late', 'x', 3, None, 'wasted'])
  assert stated.classes == ['wasted', 'solved late']
  assert view([0.9, 0.1], classes=[]).classes == []
  assert view([None, 0.1]).classes == []


def test_long_and_damaged_traces():
  long = view([0.1] * 45, texts=['x' * 700, *['y'] * 44], answer='z' * 601)
  assert (len(long.rows), long.left_out) == (40, 5)
  assert (len(long.rows[0].text), long.rows[0].left_out) == (600, 100)
  assert long.rows[1].left_out == 0
  assert long.answer.endswith('z… (1 more characters)')
  assert view([1.5]).chart is None  # no probability
  damaged = trace_of([0.5])
  damaged['episodes'][0] = {'tokens': 'many', 'text': '\x00'}
  found = report_views.view(damaged, horizon=10)
  assert found.chart is None
  assert found.rows[0] == ('z', '\ufffd', 0, '–', '–', [])
  bare = report_views.view({'episodes': []}, horizon=10)
  assert (bare.answer, bare.rows, bare.stops) == (None, [], [])


@pytest.mark.parametrize(
  'stops', [None, [], {'a': -1, 'b': 3, 'c': 0.5, 'd': 'x', 'e': None}]
)
def test_stops_that_are_nowhere(stops):
  assert view([0.1, 0.2], stops=stops).stops == []
  assert view([0.1, 0.2], stops={'a': 0}).stops == [(0, 'a stops here')]


def test_progress_that_is_stated_counts():
  trace = trace_of([0.5])
  trace['episodes'][0]['progress'] = -0.125
  assert report_views.view(trace, horizon=10).rows[0][:4] == (
    *('n2', 'try 0', 0, '−0.12'),
  )


def test_the_horizon_holds_every_token():
  run = runs.Run(path='', name='', algorithm='', eval={'horizon': 15})
  assert report_views.horizon_of(run, trace_of([0.1])) == 15
  assert report_views.horizon_of(run, trace_of([0.1, 0.2])) == 20
  run.eval = {}
  assert report_views.horizon_of(run, {'episodes': []}) == 1
  assert np.isfinite(report_views.horizon_of(run, {'episodes': [{}, 3]}))
