"""What holds for every file of the tree."""

import ast
import os
import re

import pytest
from conftest import ROOT

# Not part of the tree: what runs, builds and tools leave (see .gitignore).
LEFT_OUT = re.compile(
  r'\.git|\.venv.*|__pycache__|.*\.egg-info|build|dist|runs|\..*_cache'
  r'|\.hypothesis|_build'
)
TEXT = {'.py', '.sh', '.md', '.toml', '.cff', '.in', '.ipynb', '.json', '.html'}
# Written so that the patterns do not find themselves.
PLACES = re.compile(r'(?<![\w.~}])/(?:work|root|tmp|home|Users)/')
REGISTRIES = re.compile(r'pypi\.org|python[h]osted|registry\.npmjs|deb\.debian')
UNFINISHED = re.compile(r'\b(?:TO[D]O|FIX[M]E|x[f]ail)\b')
MAX_BYTES = 3_000_000


def walk(top):
  """Returns the files below a folder that belong to the tree."""
  files = []
  for folder, folders, names in os.walk(top):
    folders[:] = sorted(f for f in folders if not LEFT_OUT.fullmatch(f))
    files += [os.path.join(folder, name) for name in sorted(names)]
  return [os.path.relpath(file, top) for file in files]


FILES = [f for f in walk(ROOT) if f != '.git']
TEXTS = [
  f
  for f in FILES
  if os.path.splitext(f)[1] in TEXT or f in ('LICENSE', '.ci/run')
]


def lines_with(pattern, text):
  """Returns 'line number: line' for each line that a pattern is in."""
  lines = enumerate(text.splitlines(), 1)
  return [f'{n}: {line[:100]}' for n, line in lines if pattern.search(line)]


def undocumented(source):
  """Returns the public functions, classes and methods without a docstring.

  `setup` of a Flax module and functions inside functions are left out.
  """
  tree = ast.parse(source)
  missing = [] if ast.get_docstring(tree) else ['the module']
  scopes = [(tree, '')]
  while scopes:
    scope, prefix = scopes.pop()
    for node in scope.body:
      if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        continue
      if node.name.startswith('_') or (prefix and node.name == 'setup'):
        continue
      if not ast.get_docstring(node):
        missing.append(prefix + node.name)
      if isinstance(node, ast.ClassDef):
        scopes.append((node, f'{node.name}.'))
  return missing


@pytest.mark.parametrize('file', TEXTS)
def test_text_is_clean(file):
  text = (ROOT / file).read_text('utf-8')
  assert not text or text.endswith('\n'), 'no newline at the end'
  assert '\r' not in text, 'a carriage return'
  assert lines_with(PLACES, text) == [], 'a path of one machine'
  assert lines_with(REGISTRIES, text) == [], 'the host of a registry'
  assert lines_with(UNFINISHED, text) == [], 'something unfinished'


def test_no_file_is_large():
  # A study's page is made anew and ignored by git.
  kept = [f for f in FILES if not f.endswith('/study.html')]
  sizes = {file: (ROOT / file).stat().st_size for file in kept}
  assert {f: size for f, size in sizes.items() if size > MAX_BYTES} == {}


@pytest.mark.parametrize(
  'file', [f for f in FILES if f.startswith('meta_rl') and f.endswith('.py')]
)
def test_public_names_have_docstrings(file):
  assert undocumented((ROOT / file).read_text('utf-8')) == []


def test_the_checks_see_what_they_are_for():
  path = '/'.join(['', 'home', 'ann', 'x'])
  assert lines_with(PLACES, f'a\nb = "{path}"') == [f'2: b = "{path}"']
  bucket = '/'.join(['gs:', '', 'b', 'work', 'x'])
  assert lines_with(PLACES, f'{bucket} ~/tmp/x ${{DIR}}/tmp/x') == []
  assert lines_with(REGISTRIES, '.'.join(['https://pypi', 'org']))
  assert lines_with(UNFINISHED, 'TO' + 'DO: this')
  source = 'def f():\n  pass\nclass A:\n  "a"\n  def g(self):\n    pass\n'
  assert undocumented(source) == ['the module', 'f', 'A.g']
