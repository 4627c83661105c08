"""The report: what it shows, what it tolerates, what it refuses."""

import base64
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest
from report_runs import ALGORITHMS, write_run

from meta_rl import headline, report_page, runs
from meta_rl.report import build_report, headline_table, main

_VOID = {'meta', 'br', 'link', 'img', 'input', 'hr'}


class _Checker(html.parser.HTMLParser):
  """Checks the nesting of tags and collects what a page could load."""

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.ids, self.loads = [], [], [], []
    self.text, self.scripts, self.policy, self.unnamed = '', [], '', []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    given = dict(attrs)
    if tag == 'script':
      self.scripts.append((given.get('type'), ''))
    if given.get('http-equiv') == 'Content-Security-Policy':
      self.policy = given['content']
    if given.get('role') == 'img' or tag in ('img', 'canvas'):
      if not given.get('aria-label') and not given.get('alt'):
        self.unnamed.append((tag, attrs))
    elif tag == 'svg' and given.get('aria-hidden') != 'true':
      self.unnamed.append((tag, attrs))
    for name, value in attrs:
      if name == 'id':
        self.ids.append(value)
      if name.startswith('on'):
        self.loads.append((tag, name, value))
      if name in ('src', 'href', 'srcset', 'data', 'action', 'poster'):
        if not value.startswith('#') and tag != 'a':
          self.loads.append((tag, name, value))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in _VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] == ['script']:
      kind, text = self.scripts[-1]
      self.scripts[-1] = kind, text + data
    elif self.open[-1:] != ['style']:
      self.text += data


def _check(path):
  text = path.read_text(encoding='utf-8')
  checker = _Checker()
  checker.feed(text)
  checker.close()
  assert checker.open == []
  assert checker.loads == []
  assert checker.unnamed == []
  assert len(checker.ids) == len(set(checker.ids))
  assert not {'iframe', 'object', 'link', 'base'} & set(checker.tags)
  # The traces as data, and the one script that may run, by its hash; or none.
  kinds = [kind for kind, _ in checker.scripts]
  assert kinds in ([], ['application/json', None])
  allowed = re.findall('script-src ([^;]*)', checker.policy)
  hashes = []
  if kinds:
    json.loads(checker.scripts[0][1])
    digest = hashlib.sha256(checker.scripts[1][1].encode()).digest()
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'"]
  assert allowed == hashes
  assert "default-src 'none'" in checker.policy
  assert '@import' not in text
  assert not re.search(r'url\((?!#)', text)
  assert set(re.findall(r'https?://[^\s"<]+', text)) == {
    'https://arxiv.org/abs/2503.07572'
  }
  return checker


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  return [write_run(root / name, name) for name in ALGORITHMS]


@pytest.mark.parametrize('count', [1, 3, 6])
def test_report_of_some_runs(folders, tmp_path, count):
  report = build_report(folders[:count], tmp_path / 'a' / 'report.html')
  page = _check(report.html)
  names = ['base', 'GRPO', 'MRT', 'Dr. GRPO', 'STAR', 'RLOO'][:count]
  for name in names:
    assert name in page.text
  assert page.tags.count('h1') == 1
  expected = ['accuracy_vs_tokens.png', 'regret_curves.png']
  expected += ['learning_curves.png'] if count > 1 else []
  assert [path.name for path in report.images] == expected
  other = build_report(folders[:count], tmp_path / 'a' / 'other.html')
  assert [p.name for p in other.images] == [f'other_{n}' for n in expected]
  assert all(path.stat().st_size > 5000 for path in report.images)
  # Two charts, six learning curves, a bar a policy; key and step charts beside,
  # and the one that the viewer copies.
  labels = re.findall('role="img"', report.html.read_text())
  shown = min(count, 3) * 3
  assert len(labels) == 2 + (6 if count > 1 else 0) + count + shown + 1 + 1
  assert 'What was missing' not in page.text


def test_page_tells_the_result(folders, tmp_path):
  page = _check(build_report(folders[:3], tmp_path / 'report.html').html)
  evals = [json.loads((f / 'eval.json').read_text()) for f in folders[:3]]
  base, mrt = (
    np.mean(e['per_problem']['regret_token_weighted'])
    for e in (evals[0], evals[2])
  )
  lower = 100 * (1 - mrt / base)
  assert 'Three policies answer 200 held-out problems' in page.text
  assert f'{mrt:.3f}, {lower:.1f}% below that of the base policy.' in page.text
  assert 'regret of MRT − regret of GRPO' in page.text
  assert 'MRT is better' in page.text
  # J after an episode beside its progress, and the prompt once for all three.
  assert page.text.count('Problem 3 7 5 = 9') == 1
  assert re.search(r'\+0\.62 J 0\.\d\d', page.text)


def test_evaluations_of_several_sizes_are_not_told_as_one(tmp_path):
  write_run(tmp_path / 'base', 'base', rows=40, steps=4)
  write_run(tmp_path / 'mrt', 'mrt', rows=30, steps=4)
  page = _check(build_report([tmp_path], tmp_path / 'report.html').html)
  assert 'Two policies answer 30 to 40 held-out prompts each, with' in page.text


def test_adaptive_rules_have_charts_of_their_own(tmp_path):
  for name in ('base', 'grpo', 'mrt'):
    write_run(tmp_path / name, name, rows=40, steps=4, anytime=name != 'base')
  report = build_report([tmp_path], tmp_path / 'out' / 'report.html')
  page = _check(report.html)
  assert [path.name for path in report.images] == [
    'accuracy_vs_tokens.png',
    'regret_curves.png',
    'adaptive_stopping.png',
    'learning_curves.png',
  ]
  assert page.text.count('GRPO: progress') == 1
  # On the axes of the accuracy chart, its regret filled up to 1 in all three.
  assert page.text.count('comparator: right at once') == 3
  assert 'progress stops here' in page.text
  alone = build_report([tmp_path / 'mrt'], tmp_path / 'out' / 'alone.html')
  page = _check(alone.html)
  assert 'alone_adaptive_stopping.png' not in [p.name for p in alone.images]
  assert page.text.count('comparator: right at once') == 1
  assert 'its own stop' in page.text


def test_regrets_difficulty_and_votes_are_sections(tmp_path):
  for name in ('base', 'mrt'):
    write_run(tmp_path / name, name, rows=20, steps=4, sections=True)
  page = _check(build_report([tmp_path], tmp_path / 'report.html').html)
  titles = (
    *('Regret against each comparator', 'By difficulty'),
    'Votes or more thinking',
  )
  for title in titles:
    assert page.text.count(title) == 1
  write_run(tmp_path / 'old' / 'mrt', 'mrt', rows=20, steps=4)
  old = _check(build_report([tmp_path / 'old'], tmp_path / 'old.html').html)
  assert not any(title in old.text for title in titles)


def test_an_evaluation_of_an_older_version(tmp_path):
  folder = write_run(tmp_path / 'mrt', 'mrt', rows=40, steps=4)
  evaluation = json.loads((folder / 'eval.json').read_text())
  del evaluation['waste']
  (folder / 'eval.json').write_text(json.dumps(evaluation))
  page = _check(build_report([folder], tmp_path / 'report.html').html)
  assert 'what its tokens went into: evaluate again.' in page.text
  assert 'Adaptive stopping' not in page.text
  # The classes of its traces follow from J.
  traces = json.loads(page.scripts[0][1])['traces']
  assert 'wasted' in [name for trace in traces for name in trace['classes']]


def test_page_says_which_prover_measured():
  def section(**prover):
    run = runs.Run(
      path='', name='MRT <1>', algorithm='mrt', eval={'prover': prover}
    )
    return report_page.provers_text([run])

  assert section() == ''
  assert section(kind='exact') == (
    'J, the chance of a right answer, is by the exact prover, which sums the'
    ' likelihood of the accepted answers that are listed.'
  )
  gap = {'problems': 64, 'difference': {'mean': -0.02, 'low': -0.03}}
  gap['difference']['high'] = -0.01
  text = section(kind='exact', branches=8, gap=gap)
  assert (
    'On 64 problems of MRT <1> it is 0.0200 below the share of right answers'
    ' among 8 that were sampled and verified at each boundary; 95% interval of'
    ' the difference \u22120.0300 to \u22120.0100.'
  ) in text


def test_headline_figures_by_hand():
  base = {
    'name': 'base',
    'algorithm': 'base',
    'budgets': [0, 10, 20],
    'accuracy_at_budget': [0.0, 0.2, 0.4],
    'tokens_at_budget': [0.0, 8.0, 15.0],
    'scalars': {'tokens_mean': 18, 'pass@k': {'1': 0.4, '4': 0.5}},
    'per_problem': {'regret_token_weighted': [0.8, 0.6], 'cluster': [0, 1]},
  }
  better = {
    'name': 'MRT',
    'budgets': [0, 10, 20],
    'accuracy_at_budget': [0.0, 0.4, 0.6],
    'scalars': {'pass@k': {'1': 0.6, '2': 0.7}},
    'per_problem': {'regret_token_weighted': [0.6, 0.45], 'cluster': [0, 1]},
  }
  first, second = headline.headlines([base, better])
  assert first.regret.mean == pytest.approx(0.7)
  # (0.6 + 0.45)/(0.8 + 0.6) - 1 = -0.25 on both problems: no spread.
  np.testing.assert_allclose(second.change, [-0.25] * 3)
  # The level is 0 + .95·.4 = .38: 10 + 10·.18/.2 = 19 tokens on the base's
  # line, 10·.38/.4 = 9.5 on the other's; spent there: 8 + .9·7 = 14.3 of 15.
  assert first.tokens_to_base == pytest.approx(19)
  assert second.tokens_to_base == pytest.approx(9.5)
  assert (first.efficiency, second.efficiency) == (1, pytest.approx(2))
  assert (first.spent, np.isnan(second.spent)) == (pytest.approx(14.3), True)
  assert (first.tokens, np.isnan(second.tokens)) == (18, True)
  # The largest k that both hold is 1.
  assert (first.pass_at, second.pass_at) == ((1, 0.4), (1, 0.6))
  assert first.maj_at[0] == 0
  lines = headline_table([base, better]).split('\n')
  assert len(lines) == 4
  assert len({len(line) for line in lines}) == 1
  assert '| −25.0% [−25.0% to −25.0%] ' in lines[3]
  assert '| 9.5 2.00× fewer ' in lines[3]


def test_a_base_that_gains_nothing_gives_no_level():
  base = {
    'name': 'base',
    'algorithm': 'base',
    'budgets': [0, 10],
    'accuracy_at_budget': [0.3, 0.309],
  }
  run = base | {'name': 'run', 'algorithm': 'x', 'accuracy_at_budget': [0.3, 1]}
  for row in headline.headlines([base, run]):
    assert np.isnan(row.level)
    assert np.isnan(row.tokens_to_base)
    reached = dict((name, figure) for name, figure, _ in headline.cells(row))
    assert reached["budget to 95% of the base's gain"] == headline.NONE
  base['accuracy_at_budget'] = [0.3, 0.31]
  _, row = headline.headlines([base, run])
  assert row.level == pytest.approx(0.3095)
  assert row.tokens_to_base == pytest.approx(10 * 0.0095 / 0.7)


def test_headline_table_without_a_base_or_anything():
  assert headline_table([]).startswith('No evaluation to show: run python')
  table = headline_table([{'name': 'A|B\nC'}, {}])
  assert "A/B C's gain" in table
  assert 'nan' not in table


def test_unpaired_problems_are_not_compared():
  a = {'per_problem': {'accuracy': [1.0, 0.0], 'cluster': [0, 1]}}
  b = {'per_problem': {'accuracy': [1.0, 0.0], 'cluster': [1, 2]}}
  assert headline.compare(a, b, 'accuracy') is None
  assert headline.compare(a, {}, 'accuracy') is None
  assert headline.compare(a, a, 'accuracy') == (0, 0, 0)
  zero = {'per_problem': {'accuracy': [0.0, 0.0], 'cluster': [0, 1]}}
  assert headline.compare(a, zero, 'accuracy', statistic='relative') is None


def test_hostile_text_is_shown_not_obeyed(tmp_path):
  attack = '</style><script>alert(1)</script>"\'><img src=x onerror=f()>&\x00'
  folder = write_run(tmp_path / 'run', 'mrt', rows=20, steps=12, anytime=True)
  evaluation = json.loads((folder / 'eval.json').read_text())
  evaluation |= {'name': attack, 'machine': attack, 'command': attack}
  evaluation['comparisons'] = [
    {'name': attack, 'mean': 1, 'low': 0.5, 'high': 2}
  ]
  evaluation['scalars'][attack] = attack
  for entry in (*evaluation['anytime']['rules'], evaluation['anytime']['full']):
    entry |= {'rule': attack, 'label': attack, 'calibrated': attack}
  for curve in evaluation['anytime']['curves']:
    curve |= {'rule': attack, 'label': attack}
  for trace in evaluation['traces']:
    trace |= {'prompt': attack, 'answer': attack, 'stopped': attack}
    trace |= {'stops': {attack: 1}, 'classes': ['wasted', attack]}
    for episode in trace['episodes']:
      episode['text'] = attack + '\u202e\ud800'
  (folder / 'eval.json').write_text(json.dumps(evaluation))
  config = json.loads((folder / 'config.json').read_text()) | {attack: attack}
  (folder / 'config.json').write_text(json.dumps(config))
  other = write_run(tmp_path / attack.replace('/', '_')[:20], 'grpo', rows=20)
  report = build_report(
    [folder, other], tmp_path / 'r.html', title=attack, command=attack
  )
  page = _check(report.html)
  assert page.tags.count('script') == 2  # its own
  assert 'img' not in page.tags
  assert page.text.count('<script>alert(1)</script>') >= 10
  # The data of the viewer say the same, and hold nothing that ends them.
  data = page.scripts[0][1]
  assert not set('<>&\u2028') & set(data)
  (trace, *_) = json.loads(data)['traces']
  shown = attack.replace('\x00', '\ufffd')
  assert trace['prompt'] == trace['answer'] == shown
  assert trace['rows'][0]['text'] == shown + '\u202e\ufffd'
  assert trace['classes'] == ['wasted']
  assert trace['stops'][0][1].startswith('</style><script>alert(1)')


@pytest.mark.parametrize(
  'value',
  [None, [], {}, 'text', -1, True, [None, 'x'], {'mean': 'x'}, float('nan')],
)
def test_any_json_in_any_place_is_tolerated(tmp_path, value):
  folder = write_run(tmp_path / 'run', 'mrt', rows=8, steps=3, anytime=True)
  write_run(tmp_path / 'base', 'base', rows=8)
  whole = json.loads((folder / 'eval.json').read_text())
  damaged = {key: value for key in whole}
  damaged['traces'] = [value, {'episodes': [value]}, {'episodes': value}]
  damaged['per_problem'] = {'regret_token_weighted': value, 'cluster': value}
  damaged['comparisons'] = [value]
  (folder / 'eval.json').write_text(json.dumps(damaged))
  (folder / 'metrics.jsonl').write_text(
    json.dumps({'step': value, 'reward/mean': 1})
    + '\n'
    + json.dumps({'step': 1, 'reward/mean': value})
  )
  _check(build_report([tmp_path], tmp_path / 'r.html').html)


def test_missing_pieces_are_named(tmp_path, capsys):
  write_run(tmp_path / 'base', 'base', rows=20, traces=False)
  folder = tmp_path / 'half'
  folder.mkdir()
  row = {'step': 3, 'reward/mean': 0.5}
  (folder / 'metrics.jsonl').write_text(json.dumps(row) + '\n{"step": 4, "re')
  out = tmp_path / 'r.html'
  assert main([str(tmp_path), f'--out={out}']) == 0
  page = _check(out)
  for line in (
    'half: eval.json is missing',
    'half: config.json is missing',
    'half: metrics.jsonl: 1 unreadable line(s) were skipped.',
    'No evaluation holds traces.',
    'Tokens generated are not known',
  ):
    assert line in page.text
  assert 'base: metrics.jsonl' not in page.text
  found = capsys.readouterr()
  assert '| base ' in found.out
  assert 'note: half: eval.json is missing' in found.err


def test_training_without_evaluation(tmp_path):
  folder = write_run(tmp_path / 'mrt', 'mrt', rows=8, steps=20)
  (folder / 'eval.json').unlink()
  report = build_report([folder], tmp_path / 'report.html')
  page = _check(report.html)
  assert 'not evaluated yet' in page.text
  assert [path.name for path in report.images] == ['learning_curves.png']
  assert report.table.startswith('No evaluation to show')


def test_refusals_are_one_line(tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / 'eval.json').write_text('{"name": ')
  (tmp_path / 'list').mkdir()
  (tmp_path / 'list' / 'eval.json').write_text('[]')
  for name, text in (
    ('other', '{"a": 1}'),
    ('kinds', '{"budgets": 1, "scalars": 5}'),
  ):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'eval.json').write_text(text)
  good = write_run(tmp_path / 'good', 'mrt', rows=4, steps=2)
  for arguments, line in (
    ([tmp_path / 'empty'], 'is no run folder'),
    ([tmp_path / 'nowhere'], 'is no folder'),
    ([tmp_path / 'bad'], 'eval.json is damaged'),
    ([tmp_path / 'list'], 'holds a list: a JSON object is needed'),
    ([tmp_path / 'other'], 'holds no evaluation, none of budgets, '),
    ([tmp_path / 'kinds'], 'holds no evaluation, none of budgets, '),
    ([good, f'--out={tmp_path}'], 'it is a folder; name a file'),
  ):
    assert main([str(a) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert line in error
    assert error.count('\n') == 1
  with pytest.raises(ValueError, match='No run folder was given'):
    build_report([], tmp_path / 'r.html')


def test_runs_of_one_name_are_told_apart(tmp_path):
  for name in ('a', 'b'):
    write_run(tmp_path / name, 'mrt', rows=4, steps=2)
  write_run(tmp_path / 'c', 'base', rows=4)
  found = runs.read_runs([tmp_path, tmp_path / 'a'])
  assert [run.name for run in found] == ['base', 'MRT', 'MRT (2)']
  assert [run.color for run in found] == [0, 2, 3]


def test_series_counts_tokens_and_lets_the_later_line_win(tmp_path):
  folder = write_run(tmp_path / 'a', 'mrt', rows=4, steps=2)
  lines = [
    {'step': 1, 'reward/mean': 0.1, 'rollout/tokens_sum': 1920},
    {'step': 3, 'reward/mean': 0.9, 'rollout/tokens_sum': 3840},
    {'step': 3, 'reward/mean': 0.3},
    {'step': 4, 'rollout/tokens_sum': 960},
    {'step': 2, 'eval/accuracy': 0.5},
  ]
  (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  (run,) = runs.read_runs([folder])
  x, y = runs.series(run, 'reward/mean')
  np.testing.assert_allclose([x, y], [[1, 3], [0.1, 0.3]])
  # Step 1: 1920; step 2 was not logged and is taken to be like step 3:
  # 1920 + 2 × 3840 = 9600.
  x, y = runs.series(run, 'reward/mean', x='tokens')
  np.testing.assert_allclose(x, [1920, 9600])
  # Step 2 was not a training row: half way.
  x, _ = runs.series(run, 'eval/accuracy', x='tokens')
  np.testing.assert_allclose(x, [5760])


@pytest.mark.parametrize(
  ('value', 'text'),
  [(0.25, '+25.0%'), (-0.25, '−25.0%'), (0.0, '0.0%'), (-1e-9, '0.0%')],
)
def test_percent(value, text):
  assert headline.percent(value) == text
  assert headline.percent(float('nan')) == '–'
