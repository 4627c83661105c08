"""The report in a browser: it opens clean, and its trace viewer works."""

import json

import browser
import pytest
from report_runs import write_run

from meta_rl.report import build_report

BINARY = browser.find()
pytestmark = [
  pytest.mark.full,
  pytest.mark.skipif(
    BINARY is None, reason=f'none of {", ".join(browser.BINARIES)} is installed'
  ),
]
ATTACK = '</script><script>window.attacked = 1</script><img src=x onerror=a()>'


def trace_of(prompt, classes, levels, **more):
  """An entry of 'traces' with an episode for each level of J."""
  episodes = [
    {'text': f'try {i} of {prompt}', 'success': level, 'tokens': 9}
    for i, level in enumerate(levels)
  ]
  return {
    'prompt': prompt,
    'classes': classes,
    'success_start': 0.1,
    'episodes': episodes,
    'answer': 'x',
    'reward': 1.0,
    'stopped': 'policy',
  } | more


TRACES = {
  'base': [
    trace_of('one', [], [0.3, 0.8]),
    trace_of('two', ['wasted'], [0.9, 0.8] + [0.8] * 20),
    trace_of('three', ['given up'], [0.2] * 22),
  ],
  'mrt': [
    trace_of('one', ['wasted'], [0.9, 0.9], stops={'progress': 1}),
    trace_of('two', ['wasted', 'given up'], [0.9, 0.2]),
    trace_of(ATTACK, [], [0.9], answer=ATTACK, stops={ATTACK: 0}),
  ],
}


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  """A report of two policies, three traces each, none solved late."""
  root = tmp_path_factory.mktemp('report')
  for name, traces in TRACES.items():
    anytime = name == 'mrt'
    folder = write_run(root / name, name, rows=40, steps=9, anytime=anytime)
    evaluation = json.loads((folder / 'eval.json').read_text())
    evaluation['traces'] = traces
    (folder / 'eval.json').write_text(json.dumps(evaluation))
  return build_report([root], root / 'report.html').html


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
  """The one tab that the tests of this file use in turn."""
  profile = tmp_path_factory.mktemp('profile')
  with browser.Page(BINARY, profile) as page:
    yield page


@pytest.fixture
def page(chromium, report):
  """The report, opened on a large screen, nothing noted before."""
  chromium.errors.clear()
  chromium.requests.clear()
  chromium.open(report.as_uri())
  return chromium


def shown(page):
  """What the viewer shows: position, prompt, number of episodes."""
  return page.run("""(() => {
    const root = document.getElementById('viewer');
    const at = (query) => root.querySelector(query)?.textContent;
    return [at('.position'), at('.problem .mono') ?? null,
            root.querySelectorAll('.shown li:not(.plain, .rule)').length];
  })()""")


def click(page, **data):
  """Clicks the viewer's button of such data: kind, policy or turn."""
  ((name, value),) = data.items()
  page.run(f"""document.querySelector(
    '#viewer [data-{name}="{value}"]').click()""")


def counts(page):
  """The numbers on the buttons of the classes."""
  return page.run("""Object.fromEntries(
    [...document.querySelectorAll('#viewer [data-kind]')].map((b) =>
      [b.dataset.kind, Number(b.querySelector('.number').textContent)]))""")


def pressed(page):
  """What is written on the buttons that are pressed."""
  return page.run("""[...document.querySelectorAll(
    '#viewer [aria-pressed=true]')].map((b) => b.textContent.trim())""")


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [390, 1280])
def test_it_opens_without_an_error_or_a_request(page, report, width, dark):
  page.open(report.as_uri(), width=width, dark=dark, phone=width == 390)
  assert page.errors == []
  assert set(page.requests) == {report.as_uri()}
  # Nothing is wider than the screen.
  assert page.run('document.documentElement.scrollWidth') == width
  unnamed = page.run("""[...document.querySelectorAll('img, canvas, svg')]
    .filter((e) => e.getAttribute('aria-hidden') !== 'true')
    .filter((e) => e.tagName !== 'IMG' && e.getAttribute('role') !== 'img' ||
      !(e.getAttribute('aria-label') || e.getAttribute('alt')))
    .map((e) => e.outerHTML.slice(0, 80))""")
  assert unnamed == []
  # Every button has a name, and every id that is referred to is there.
  assert page.run("""[...document.querySelectorAll('button')]
    .every((b) => b.textContent.trim() && b.type === 'button')""")
  light, night = 'rgb(255, 255, 255)', 'rgb(17, 22, 29)'
  color = page.run('getComputedStyle(document.body).backgroundColor')
  assert color == (night if dark else light)


def test_filters_change_what_is_shown(page):
  assert not page.run("document.getElementById('viewer').hidden")
  everything = {'all': 6, 'wasted': 3, 'given up': 2, 'solved late': 0}
  assert counts(page) == everything
  assert shown(page) == ['1 of 6', 'one', 2]
  click(page, kind='wasted')
  # MRT's trace of the same problem, since the base's is in no class.
  assert shown(page) == ['2 of 3', 'one', 2]
  click(page, policy=0)
  # 'one' is not among the base's wasted ones: the first that is.
  assert shown(page) == ['1 of 1', 'two', 22]
  assert counts(page) == {
    'all': 3,
    'wasted': 1,
    'given up': 1,
    'solved late': 0,
  }
  click(page, policy=1)
  assert shown(page) == ['2 of 2', 'two', 2]
  click(page, kind='given up')
  assert shown(page) == ['1 of 1', 'two', 2]
  assert pressed(page) == ['given up 1', 'MRT']
  click(page, kind='solved late')
  assert shown(page) == ['0 of 0', None, 0]
  click(page, turn=1)
  assert shown(page) == ['0 of 0', None, 0]
  click(page, kind='all')
  click(page, policy='')
  assert counts(page) == everything
  assert pressed(page) == ['all 6', 'all policies']
  assert page.errors == []


def test_keys_turn_to_the_next_and_the_previous_trace(page):
  page.press('ArrowRight')  # the focus is elsewhere
  assert shown(page)[0] == '1 of 6'
  page.run("document.querySelector('#viewer .shown').focus()")
  page.press('ArrowRight')
  assert shown(page) == ['2 of 6', 'two', 22]
  page.press('ArrowLeft')
  page.press('ArrowLeft')
  assert shown(page)[0] == '6 of 6'
  page.press('ArrowRight')
  assert shown(page) == ['1 of 6', 'one', 2]
  click(page, turn=-1)
  assert shown(page)[0] == '6 of 6'


def test_a_trace_is_shown_with_its_progress_and_its_stops(page):
  click(page, policy=1)
  rows = page.run("""[...document.querySelectorAll('#viewer .shown li')]
    .map((e) => [e.className, e.textContent])""")
  assert rows == [
    ['plain', 'no thinking yetJ 0.10'],
    ['p4', 'try 0 of one+0.80 J 0.90'],
    ['rule', 'progress stops here'],
    ['z', 'try 1 of one after success0.00 J 0.90'],
  ]
  drawn = page.run("""(() => {
    const chart = document.querySelector('#viewer .shown svg');
    return [chart.getAttribute('aria-label'),
            chart.querySelectorAll('line').length,
            chart.getBoundingClientRect().width > 300];
  })()""")
  # The own stop, the rule's, the axis.
  assert drawn == ['J rises from 0.10 to 0.90 over 18 of 96 tokens', 3, True]
  click(page, turn=1)
  answer = "document.querySelector('#viewer .answer').textContent"
  assert page.run(answer) == 'Answer x ✓ right'


def test_text_of_a_run_is_text(page):
  click(page, policy=1)
  click(page, turn=-1)
  assert shown(page) == ['3 of 3', ATTACK, 1]
  rule = "document.querySelector('#viewer .rule').textContent"
  assert page.run(rule).startswith(ATTACK[:40])
  assert page.run('document.images.length') == 0
  assert page.run('window.attacked') is None
  assert page.errors == []


def test_a_foreign_script_does_not_run(page, report):
  other = report.with_name('other.html')
  script = '<script>window.attacked = 1</script><img src="https://a.invalid/x">'
  other.write_text(report.read_text().replace('<main>', f'<main>{script}'))
  page.open(other.as_uri())
  assert page.run('window.attacked') is None
  assert not page.run("document.getElementById('viewer').hidden")
  refused = [e for e in page.errors if 'Content Security' in e.get('text', '')]
  assert len(refused) == 2


def test_nothing_moves_when_the_trace_changes(page, report):
  page.open(report.as_uri(), width=390, height=844, phone=True)
  places = """(() => {
    const root = document.getElementById('viewer');
    return [root.querySelector('.shown'), root.nextElementSibling,
            document.querySelector('footer'),
            ...root.querySelectorAll('button')]
      .filter((e) => e.tagName !== 'SCRIPT')
      .map((e) => e.getBoundingClientRect().top + window.scrollY);
  })()"""
  before = page.run(places)
  for policy in ('', 0, 1):
    click(page, policy=policy)
    for kind in ('all', 'wasted', 'given up', 'solved late'):
      click(page, kind=kind)
      for _ in range(4):
        click(page, turn=1)
        assert page.run(places) == before
  # What is long is scrolled, and a new trace is shown from its beginning.
  click(page, kind='all')
  click(page, policy=0)
  box = "document.querySelector('#viewer .shown')"
  page.run(f'{box}.scrollTop = 200')
  assert page.run(f'{box}.scrollTop') == 0  # 'one' is short
  click(page, turn=1)
  page.run(f'{box}.scrollTop = 200')
  assert page.run(f'{box}.scrollTop') == 200
  click(page, turn=1)  # to another long one
  assert page.run(f'{box}.scrollHeight') > 500
  assert page.run(f'{box}.scrollTop') == 0


def test_without_scripts_the_page_is_whole_but_for_the_viewer(page, report):
  page.send('Emulation.setScriptExecutionDisabled', value=True)
  try:
    page.open(report.as_uri())
    root = page.send('DOM.getDocument')['root']['nodeId']

    def boxes(query):
      found = page.send('DOM.querySelectorAll', nodeId=root, selector=query)
      return [
        bool(page.send('DOM.getContentQuads', nodeId=node)['quads'])
        for node in found['nodeIds']
      ]

    assert boxes('.trace') == [True] * 6
    assert boxes('noscript p') == [True]
    assert boxes('#viewer') == [False]
  finally:
    page.send('Emulation.setScriptExecutionDisabled', value=False)
  assert page.errors == []
