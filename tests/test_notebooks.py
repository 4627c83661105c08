"""The notebooks of colab/: in order as files, and they run from start to end.

What is executed is the installed package, with no network and in a folder of
its own (tests/notebooks.py).
"""

import ast
import base64
import re

import notebooks
import pytest
import wheels
from conftest import ROOT

PATHS = sorted(notebooks.FOLDER.glob('*.ipynb'))
# Small enough for a minute each; what these mean is said in the notebooks'
# parameter cells and in colab/README.md.
SIZES = {
  'quickstart': {
    'META_RL_NOTEBOOK_STEPS': '2',
    'META_RL_NOTEBOOK_PROBLEMS': '16',
  },
  'regret_explained': {'META_RL_NOTEBOOK_TRACES': '32'},
  'losses': {'META_RL_NOTEBOOK_STEPS': '40'},
  'your_model': {'META_RL_NOTEBOOK_STEPS': '2'},
}
MAX_BYTES = 300_000
MAX_LINES = 45  # of a code cell: a notebook is thin over the library
# '<Figure size 460x300 with 1 Axes>': what an object without words is shown as.
DEFAULT = re.compile(r'<[^\n]*>')
PICTURES = re.compile(r'\b(?:pyplot|savefig|imshow|Image)\b')

each = pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)


def made(*sources, kind='code', **cell):
  """Returns a notebook of some cells."""
  base = {'cell_type': kind, 'metadata': {}} | cell
  if kind == 'code':
    base = {'execution_count': None, 'outputs': []} | base
  listed = [
    base | {'id': f'cell-{i}', 'source': source}
    for i, source in enumerate(sources)
  ]
  return {
    'cells': listed,
    'metadata': {},
    'nbformat': 4,
    'nbformat_minor': 5,
  }


def without_text(outputs):
  """Returns the pictures and pages among outputs that say nothing in words."""
  silent = []
  for output in outputs:
    data = output.get('data', {})
    said = ''.join(data.get('text/plain', ''))
    images = [kind for kind in data if kind.startswith('image/')]
    alts = [output['metadata'].get(kind, {}).get('alt') for kind in images]
    if 'text/html' in data:
      alts.append(said)
    if any(not alt or len(alt) < 20 or DEFAULT.fullmatch(alt) for alt in alts):
      silent.append(output)
  return silent


def test_every_notebook_is_known():
  assert {path.stem for path in PATHS} == {*notebooks.NAMES} == {*SIZES}
  readme = (notebooks.FOLDER / 'README.md').read_text('utf-8')
  for name in notebooks.NAMES:
    assert f'({name}.ipynb)' in readme


@each
def test_the_file_is_in_normal_form(path):
  notebook = notebooks.read(path)
  assert path.read_text('utf-8') == notebooks.normal(notebook), (
    f'{path.name} is not in normal form: python tests/notebooks.py {path.stem}'
  )
  assert path.stat().st_size < MAX_BYTES
  ids = [cell['id'] for cell in notebook['cells']]
  assert len({*ids}) == len(ids)
  assert all(re.fullmatch('[a-z][a-z-]*', name) for name in ids)


@each
def test_the_outputs_are_those_of_the_code(path):
  notebook = notebooks.read(path)
  shown = notebooks.outputs(notebook)
  assert shown, f'no outputs: python tests/notebooks.py {path.stem}'
  assert notebook['metadata']['executed'] == notebooks.digest(notebook), (
    f'the code has changed since: python tests/notebooks.py {path.stem}'
  )
  assert not [o for o in shown if o['output_type'] == 'error']
  assert not [o for o in shown if o.get('name') == 'stderr']
  assert without_text(shown) == []
  # Each of them shows something.
  kinds = {kind for o in shown for kind in o.get('data', ())}
  assert 'image/png' in kinds


@each
def test_it_tells_what_it_needs_first(path):
  notebook = notebooks.read(path)
  title, install, *_ = notebook['cells']
  assert title['cell_type'] == 'markdown'
  assert notebooks.source(title).startswith('# ')
  assert '**Expected time**' in notebooks.source(title)
  code = notebooks.source(install)
  assert 'try:\n  import meta_rl\nexcept ImportError:' in code
  assert '%pip install -q "meta-rl[' in code
  # Everything that is read from outside is in one cell.
  reading = [
    cell['id']
    for cell in notebooks.cells(notebook, 'code')
    if 'META_RL_NOTEBOOK_' in notebooks.source(cell)
  ]
  assert reading == ['parameters']
  named = re.findall(r'META_RL_NOTEBOOK_\w+', str(notebook['cells']))
  readme = (notebooks.FOLDER / 'README.md').read_text('utf-8')
  assert {n for n in named if f'`{n}`' not in readme} == set()


@each
def test_it_is_thin(path):
  for cell in notebooks.cells(notebooks.read(path), 'code'):
    code = notebooks.source(cell)
    assert code.count('\n') < MAX_LINES, cell['id']
    # Pictures go through notebook.picture and its kin, which ask for words.
    assert not PICTURES.search(code), cell['id']
    for line in code.splitlines():
      assert not re.match(r'\s*[!%](?!pip install)', line), line


@each
def test_it_uses_public_names_alone(path):
  for cell in notebooks.cells(notebooks.read(path), 'code'):
    if '%pip' in notebooks.source(cell):
      continue
    for node in ast.walk(ast.parse(notebooks.source(cell))):
      if isinstance(node, ast.Attribute):
        private = node.attr.startswith('_') and not node.attr.endswith('__')
        assert not private, node.attr


def test_normal_form():
  notebook = made('a\nb', metadata={'execution': {'started': 'now'}})
  cell = notebook['cells'][0]
  cell |= {'execution_count': 7}
  cell['outputs'] = [
    {
      'output_type': 'execute_result',
      'execution_count': 7,
      'metadata': {},
      'data': {'text/plain': 'x\ny', 'image/png': 'QUJD\n'},
    },
    {'output_type': 'stream', 'name': 'stdout', 'text': ['p', 'q\n']},
  ]
  notebook['metadata'] = {'widgets': {}, 'executed': 'abc'}
  text = notebooks.normal(notebook)
  assert text.endswith('}\n')
  assert 'started' not in text
  assert 'widgets' not in text
  assert '7' not in text
  again = notebooks.json.loads(text)
  assert notebooks.normal(again) == text
  (found,) = again['cells']
  assert found['source'] == ['a\n', 'b']
  assert found['outputs'][0]['data'] == {
    'text/plain': ['x\n', 'y'],
    'image/png': 'QUJD',
  }
  assert found['outputs'][1]['text'] == ['pq\n']
  # Which code the outputs are of is kept; without outputs there is nothing.
  assert again['metadata']['executed'] == 'abc'
  assert 'executed' not in notebooks.normal(made('a'))


def test_the_digest_is_of_the_code():
  one = made('a', 'b')
  other = made('a', 'c')
  assert notebooks.digest(one) != notebooks.digest(other)
  words = made('# title', kind='markdown')
  words['cells'] += one['cells']
  assert notebooks.digest(words) == notebooks.digest(one)


def test_a_picture_without_words_is_seen():
  picture = {'data': {'image/png': 'QUJD', 'text/plain': ['<Figure>']}}
  alt = 'Accuracy rises from 0.2 to 0.7.'
  assert len(without_text([picture | {'metadata': {}}])) == 1
  told = picture | {'metadata': {'image/png': {'alt': alt}}}
  assert without_text([told]) == []
  page = {
    'text/html': '<b>',
    'text/plain': ['<IPython.core.display.HTML object>'],
  }
  assert len(without_text([{'metadata': {}, 'data': page}])) == 1
  page['text/plain'] = ['<bos> 3 5 = 8 <think>\n', 'base: J 0.25\n']
  assert without_text([{'metadata': {}, 'data': page}]) == []


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """The folder of the installed package."""
  return wheels.build(tmp_path_factory.mktemp('wheel'))


@pytest.mark.full
@pytest.mark.timeout(900)
@each
def test_it_runs_from_start_to_end(path, installed):
  nbformat = pytest.importorskip('nbformat', reason="needs the extra 'colab'")
  nbformat.validate(nbformat.read(path, 4))
  notebook = notebooks.read(path)
  # The package that was imported, and where.
  check = made('import meta_rl\nprint(meta_rl.__file__, os.listdir())')
  notebook['cells'] += check['cells']
  for cell in notebooks.cells(notebook, 'code'):
    cell['outputs'] = []
  done = notebooks.execute(notebook, package=installed, sizes=SIZES[path.stem])
  *shown, last = notebooks.outputs(done)
  where, listed = ''.join(last['text']).split(' ', 1)
  assert where == str(installed / 'meta_rl' / '__init__.py')
  assert 'setup.py' not in listed
  assert [''.join(o['text']) for o in shown if o.get('name') == 'stderr'] == []
  assert without_text(shown) == []
  pictures = [
    o['data']['image/png'] for o in shown if 'image/png' in o.get('data', ())
  ]
  assert pictures
  for picture in pictures:
    assert base64.b64decode(picture).startswith(b'\x89PNG')


@pytest.mark.full
@pytest.mark.parametrize(
  'code, error',
  [
    ("socket.create_connection(('192.0.2.1', 80), 5)", 'asked for 192.0.2.1'),
    ("urllib.request.urlopen('http://example.org')", 'refused'),
    (  # of a Python that the notebook starts, too
      'code = \'import socket; socket.getaddrinfo("example.org", 80)\'\n'
      "started = subprocess.run([sys.executable, '-c', code],"
      ' capture_output=True, text=True)\nraise OSError(started.stderr)',
      'asked for example.org',
    ),
    ('warnings.warn("beware")', 'beware'),
  ],
)
def test_a_download_or_a_warning_fails(code, error):
  exceptions = pytest.importorskip(
    'nbclient.exceptions', reason="needs the extra 'colab'"
  )
  imports = 'import socket, subprocess, sys, urllib.request, warnings\n'
  with pytest.raises(exceptions.CellExecutionError, match=error):
    notebooks.execute(made(imports + code), timeout=60)


def test_the_extras_are_installed_for_them():
  text = (ROOT / 'test.sh').read_text('utf-8')
  (extras,) = re.findall(r'(?m)^FULL_EXTRAS=(.*)$', text)
  assert 'colab' in extras.split(',')
