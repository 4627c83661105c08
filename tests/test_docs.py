"""The documents: a whole reference; links, examples and how-tos that work."""

import doctest
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from test_layers import PURE

DOCS = ROOT / 'docs'
PAGES = sorted(
  page for page in DOCS.rglob('*.md') if '_build' not in page.parts
)
TOP = sorted(ROOT.glob('*.md'))
HOW_TOS = sorted(DOCS.glob('howto_*.md'))

# The public functions: what others build on, by the module that has them.
PUBLIC = {
  'types': 'Model WeightedSum Episodes Rollout',
  'models': 'from_apply_fn',
  'episodes': 'split_text split_spans merge from_delimiters from_budgets '
  'token_ids',
  'regret': 'progress cumulative token_weighted normalized',
  'advantages': 'group_normalize leave_one_out brpo episode_weights '
  'episode_credit prover_baseline to_tokens',
  'losses': 'policy_gradient kl_penalty',
  'prover': 'exact sampled sample_answers',
  'rollout': 'generate',
  'evaluate': 'pass_at_k maj_at_k extract_boxed',
}
# Of these modules the reference has all that is public, with an example.
WHOLE = [*PURE, 'answers', 'statistics']
# What needs none: checks, the identity, one that is told by its parts.
WITHOUT = re.compile(
  r'.*\.check_\w+|shaping\.none|statistics\.Interval|curriculum\.Curriculum'
  r'|costs\.(sampled_tokens|step_costs|Meter)'
)
EXAMPLES = [*WHOLE, 'types', 'prover', 'study_statistics', 'models.generic']
EXAMPLES += ['verifiers.extract']


def load(path):
  """Returns the module that a file is, wherever it lies."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


docstrings = load(DOCS / 'docstrings.py')


@pytest.fixture(scope='module')
def reference():
  """The full names of all that the reference documents."""
  return docstrings.documented(DOCS / 'api')


def find(name):
  """Returns the object of a dotted name inside meta_rl, and its module."""
  parts = name.split('.')
  for i in range(len(parts), 0, -1):
    try:
      module = importlib.import_module('.'.join(['meta_rl', *parts[:i]]))
    except ImportError:
      continue
    value = module
    for part in parts[i:]:
      value = getattr(value, part)
    return value, module
  raise AssertionError(f'meta_rl.{name} is nothing')


def public_names(module):
  """Returns the names of what a module of meta_rl has, 'regret.progress'."""
  found = docstrings.members(importlib.import_module(f'meta_rl.{module}'))
  return {f'{module}.{name}' for name in found}


# --- the reference is whole ---


@pytest.mark.parametrize('module', PUBLIC)
def test_public_functions_are_in_the_reference(module, reference):
  known = {id(find(name.removeprefix('meta_rl.'))[0]) for name in reference}
  for name in PUBLIC[module].split():
    value, _ = find(f'{module}.{name}')
    assert id(value) in known, f'no page of docs/api has {module}.{name}'


@pytest.mark.parametrize('module', WHOLE)
def test_nothing_of_a_module_is_left_out(module, reference):
  missing = {f'meta_rl.{x}' for x in public_names(module)} - reference
  assert missing == set()


def test_the_reference_has_no_name_of_nothing(reference):
  for name in reference:
    find(name.removeprefix('meta_rl.'))


def test_every_page_of_the_reference_is_listed():
  listed = re.findall(r'^(\w+)$', (DOCS / 'api/index.md').read_text(), re.M)
  pages = {page.stem for page in (DOCS / 'api').glob('*.md')} - {'index'}
  assert set(listed) == pages


def test_a_name_that_a_page_lacks_is_seen(tmp_path):
  page = '```{eval-rst}\n.. automodule:: meta_rl.regret\n   :members:%s\n```\n'
  (tmp_path / 'a.md').write_text(page % ' progress, shares')
  assert docstrings.documented(tmp_path) == {
    'meta_rl.regret.progress',
    'meta_rl.regret.shares',
  }
  (tmp_path / 'a.md').write_text(page % '')
  whole = docstrings.documented(tmp_path)
  assert whole == {f'meta_rl.{name}' for name in public_names('regret')}
  (tmp_path / 'a.md').write_text('.. automodule:: meta_rl.regret\n')
  assert docstrings.documented(tmp_path) == set()


# --- the method ---


def homes(text):
  """Returns (name, path) of each link from a name to a file of meta_rl."""
  return re.findall(r'\[`([\w.]+)`\]\((?:\.\./)+(meta_rl/[\w./]+)\)', text)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_a_name_links_to_the_file_that_it_is_in(page):
  for name, path in homes(page.read_text('utf-8')):
    value, _ = find(name)
    source = inspect.getsourcefile(value)
    assert source == str(ROOT / path), f'{name} is not in {path}'


@pytest.mark.parametrize('module', WHOLE)
def test_the_method_names_the_home_of_every_formula(module):
  named = dict(homes((DOCS / 'method.md').read_text('utf-8')))
  helpers = re.compile(r'.*\.check_\w+|statistics\.Interval')
  missing = {x for x in public_names(module) if not helpers.fullmatch(x)}
  assert missing - set(named) == set()


# --- examples ---


@pytest.mark.parametrize('module', EXAMPLES)
def test_examples_of_docstrings(module):
  found = doctest.testmod(importlib.import_module(f'meta_rl.{module}'))
  assert found.failed == 0
  assert found.attempted > 0


@pytest.mark.parametrize('module', WHOLE)
def test_every_pure_function_has_an_example(module):
  missing = [
    name
    for name in sorted(public_names(module))
    if not WITHOUT.fullmatch(name)
    and '>>> ' not in (inspect.getdoc(find(name)[0]) or '')
  ]
  assert missing == []


def doctests(text):
  """Returns the doctest blocks of a page as one text."""
  return '\n'.join(re.findall(r'^```\{doctest\}\n(.*?)^```', text, re.M | re.S))


WITH_DOCTESTS = [p for p in PAGES if doctests(p.read_text('utf-8'))]


@pytest.mark.parametrize('page', WITH_DOCTESTS, ids=lambda page: page.name)
def test_examples_of_pages(page):
  text = doctests(page.read_text('utf-8'))
  test = doctest.DocTestParser().get_doctest(text, {}, page.name, None, 0)
  assert test.examples
  assert doctest.DocTestRunner().run(test).failed == 0


# --- links ---


def anchors(text):
  """Returns the anchors of a page's headings, as GitHub and MyST make them."""
  text = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
  headings = re.findall(r'^#+ (.+)$', text, re.M)
  plain = [re.sub(r'[^\w\- ]', '', heading.lower()) for heading in headings]
  return {heading.strip().replace(' ', '-') for heading in plain}


def broken(page):
  """Returns the links of a page to files and headings that are not there."""
  text = page.read_text('utf-8')
  prose = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
  missing = []
  for target in re.findall(r'\]\(([^)\s]+)\)', prose):
    if re.match(r'https?:|mailto:', target):
      continue
    path, _, anchor = target.partition('#')
    file = (page.parent / path) if path else page
    if not file.exists() or not file.resolve().is_relative_to(ROOT):
      missing.append(target)
    elif anchor and anchor not in anchors(file.read_text('utf-8')):
      missing.append(target)
  return missing


@pytest.mark.parametrize('page', [*TOP, *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  assert broken(page) == []


def test_a_broken_link_is_seen(tmp_path, monkeypatch):
  monkeypatch.setitem(globals(), 'ROOT', tmp_path)
  page = tmp_path / 'a.md'
  page.write_text(
    '# A `b`, c\n[x](a.md#a-b-c) [y](b.md) [z](#a) [u](https://u)'
  )
  assert broken(page) == ['b.md', '#a']
  page.write_text('```\n[x](nothing.md)\n```\n[up](../a.md)\n')
  assert broken(page) == ['../a.md']


# --- docstrings and links as reST ---


def rst(text, **public):
  """Returns a docstring as reST; `public` are {code: full name}."""
  lines = docstrings.to_rst(inspect.cleandoc(text).split('\n'), public.get)
  return '\n'.join(lines).strip()


@pytest.mark.parametrize(
  'text, expected',
  [
    ('Returns J_{j+1}, |x| and a*b.', r'Returns J\_{j+1}, \|x\| and a\*b.'),
    ('The `ends` of\nit.', 'The ``ends`` of it.'),
    ('As `f`.', 'As :py:obj:`f <meta_rl.f>`.'),
    ('All `x`s, +`x`.', r'All ``x``\ s, +\ ``x``.'),
    ('- not a list', r'\- not a list'),
    (
      'GAE (arXiv 1506.02438).',
      'GAE (`arXiv 1506.02438 <https://arxiv.org/abs/1506.02438>`__).',
    ),
    (
      'In:  [0, 1]\nOut: [1]',
      '.. code-block:: none\n\n  In:  [0, 1]\n  Out: [1]',
    ),
    (
      'A.\n\n    r_j = J_j\n\n    or 0\n\nB.',
      'A.\n\n.. code-block:: none\n\n  r_j = J_j\n\n  or 0\n\nB.',
    ),
    (
      'A.\n\nArgs:\n  a, b: one\n    more.\n  **c_d: two.',
      'A.\n\n:Arguments:\n  - **a**, **b** – one more.\n'
      r'  - **\*\*c\_d** – two.',
    ),
    ('A.\n\nReturns:\n  One: `x`.', 'A.\n\n:Returns:\n  One: ``x``.'),
    (
      'A.\n\nReturns:\n  a: one\n    more.\n  b: two.',
      'A.\n\n:Returns:\n  - **a** – one more.\n  - **b** – two.',
    ),
    (
      'A.\n\nRaises:\n  ValueError: wrong.\n\nB.',
      'A.\n\n:Raises:\n  - **ValueError** – wrong.\n\nB.',
    ),
    (
      'A.\n\nExample:\n  >>> 1\n  1',
      'A.\n\n.. rubric:: Example\n\n>>> 1\n1',
    ),
  ],
)
def test_a_docstring_as_rest(text, expected):
  assert rst(text, f='meta_rl.f') == expected


def test_links_out_of_the_documents():
  text = (
    '[`f.g`](../meta_rl/f.py) [`f.h`](../meta_rl/f.py) [the log](../LOG.md) '
    '[pods](pods.md) [up](../docs/pods.md) [all](../configs/)'
  )
  assert docstrings.relink(text, DOCS, DOCS, {'meta_rl.f.g'}) == (
    '{py:obj}`f.g <meta_rl.f.g>` {download}`f.h <../meta_rl/f.py>` '
    '{download}`the log <../LOG.md>` [pods](pods.md) [up](../docs/pods.md) all'
  )


# --- how-tos ---


def blocks(page):
  """Returns (kind, file name or None, text) of a how-to's code blocks."""
  text = page.read_text('utf-8')
  found = re.findall(r'^```(\w+)\n(.*?)^```$', text, re.M | re.S)
  names = [re.match(r'# ([\w/]+\.py)\n', body) for _, body in found]
  return [
    (kind, name and name[1], body) for (kind, body), name in zip(found, names)
  ]


@pytest.mark.parametrize('page', HOW_TOS, ids=lambda page: page.stem)
def test_code_of_how_tos_is_formatted(page):
  kinds = set()
  for kind, _, body in blocks(page):
    kinds.add(kind)
    if kind != 'python':
      continue
    given = {'input': body, 'text': True, 'capture_output': True, 'cwd': ROOT}
    name = ('--stdin-filename', 'block.py')
    for command in (('format', '--diff'), ('check', '--ignore=I')):
      result = subprocess.run(
        [sys.executable, '-m', 'ruff', *command, *name, '-'], **given
      )
      assert result.returncode == 0, result.stdout + result.stderr
  assert {'python', 'bash'} <= kinds <= {'python', 'bash', 'diff'}


@pytest.mark.full
@pytest.mark.parametrize(
  'page',
  [
    page
    if page.stem == 'howto_loss'
    else pytest.param(page, marks=pytest.mark.soak)
    for page in HOW_TOS
  ],
  ids=lambda page: page.stem,
)
def test_how_tos_work(page, tmp_path):
  """Each block in its order, in a copy of the package.

  A block that begins with a file's name is that file; others are run.
  """
  for folder in ('meta_rl', 'configs'):
    shutil.copytree(ROOT / folder, tmp_path / folder)
  environment = os.environ | {
    'PATH': f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}',
    'PYTHONPATH': str(tmp_path),
    'META_RL_DATA': str(tmp_path / 'data'),
  }
  for kind, name, body in blocks(page):
    if name and kind == 'python':
      file = tmp_path / name
      file.parent.mkdir(exist_ok=True)
      file.write_text(body)
      continue
    command = {
      'python': [sys.executable, '-W', 'error', '-'],
      'bash': ['bash', '-eu', '-s'],
      'diff': ['git', 'apply', '-'],
    }[kind]
    result = subprocess.run(
      command,
      input=body,
      cwd=tmp_path,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert result.returncode == 0, f'{body}\n{result.stdout}\n{result.stderr}'


# --- the build ---


def build(builder, out):
  """Builds the documents; a warning, or a link to nowhere, is an error."""
  result = subprocess.run(
    [
      *(sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-n', '-q'),
      *('-b', builder, '-d', str(out / 'doctrees'), str(DOCS), str(out)),
    ],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.full
def test_the_documents_build(tmp_path):
  build('html', tmp_path)
  pages = list(tmp_path.rglob('*.html'))
  assert len(pages) > 2 * len(PAGES)  # and the sources
  for page in pages:
    text = page.read_text('utf-8')
    assert str(ROOT) not in text, page
    loaded = r'<(?:script|img|link)\b[^>]*(?:src|href)="(https?:[^"]*)"'
    assert re.findall(loaded, text) == [], page
  progress = (tmp_path / 'api/regret.html').read_text('utf-8')
  assert 'id="meta_rl.regret.progress"' in progress
  assert 'r_j = J_{j+1} - J_j for j &lt; count' in progress
  method = (tmp_path / 'method.html').read_text('utf-8')
  assert 'href="api/regret.html#meta_rl.regret.progress"' in method
  assert '{py:obj}' not in method


@pytest.mark.full
def test_the_examples_of_the_documents_run(tmp_path):
  build('doctest', tmp_path)
  output = (tmp_path / 'output.txt').read_text('utf-8')
  total = int(re.search(r'(\d+) tests\n +0 failures in tests', output)[1])
  assert total > 200
