"""The report's section about wasted tokens."""

import re

import pytest

from meta_rl import report_waste, runs


def entry(mean, low=None, high=None):
  """Mean and interval as JSON."""
  return {'mean': mean, 'low': low, 'high': high}


def run_of(name='MRT', color=2, **changes):
  category = {'tokens': entry(4.5), 'share': entry(0.125, 0.1, 0.15)}
  names = ('after_success', 'repeated', 'negative_progress', 'no_progress')
  found = {
    'solved_above': 0.5,
    'flat_below': 0.02,
    'late_above': 2 / 3,
    'tokens': entry(36, 30.25, 42),
    'categories': dict.fromkeys((*names, 'any'), category),
    'split': {'after_success': 0.5, 'repeated': 0.06, 'rest': 0.44},
    'classes': {'wasted': entry(0.25, 0.2, 0.3)},
  }
  return runs.Run(
    path='',
    name=name,
    algorithm='',
    color=color,
    eval={'waste': found | changes},
  )


def text_of(html):
  """The text of a page's part, tags as spaces."""
  return ' '.join(re.sub('<[^>]*>', ' ', html).split())


def test_the_figures_are_shown():
  html = report_waste.waste_section([run_of()])
  text = text_of(html)
  assert 'MRT 12.5% [10.0% to 15.0%] 4.5 tokens 12.5%' in text
  assert '36.0 [30.2 to 42.0]' in text
  # No interval of the classes that are missing, and no figure.
  assert 'MRT 25.0% [20.0% to 30.0%] – –' in text
  assert 'first success after more than 67% of the budget' in text
  assert 'J above 0.50' in text
  # The bar says in words what it shows, and has a part for each.
  assert (
    'aria-label="Thinking tokens of MRT: 50.0% after the first success, 6.0%'
    ' repeats, 44.0% the rest: progress before the success"' in html
  )
  parts = re.findall('class="(..)" style="flex-grow:([^"]*)">([^<]*)<', html)
  assert parts == [
    ('n4', '0.5000', '50%'),
    ('n3', '0.0600', ''),  # too narrow for a figure
    ('p2', '0.4400', '44%'),
  ]


def test_evaluations_of_older_versions():
  old = runs.Run(path='', name='old', algorithm='', eval={'scalars': {}})
  text = text_of(report_waste.waste_section([old]))
  assert text.endswith(
    'No evaluation says what its tokens went into: evaluate again.'
  )
  both = report_waste.waste_section([old, run_of()])
  assert 'old' not in text_of(both)
  assert report_waste.waste_section([]) != ''


@pytest.mark.parametrize('value', [None, [], 3, 'x', {'mean': 'x'}, -1.0])
def test_any_json_in_any_place(value):
  whole = run_of().eval['waste']
  for key in whole:
    html = report_waste.waste_section([run_of(**{key: value})])
    assert 'nan' not in text_of(html)
    if isinstance(whole[key], dict):
      inner = dict.fromkeys(whole[key], value)
      html = report_waste.waste_section([run_of(**{key: inner})])
      assert 'nan' not in text_of(html)


def test_a_name_is_text():
  html = report_waste.waste_section([run_of(name='"><b>')])
  assert '<b>' not in html
  assert html.count('&quot;&gt;&lt;b&gt;') >= 4
