"""The notebooks of colab/, executed as a reader would, and their normal form.

    python tests/notebooks.py            all of them, outputs written back
    python tests/notebooks.py losses     one

It takes the extra `colab`. The kernel runs the installed package in a folder of
its own, and has no way out to a network: a download is an error.
"""

import hashlib
import json
import os
import pathlib
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'colab'
NAMES = ('quickstart', 'regret_explained', 'losses', 'your_model')

# sitecustomize.py of the kernel and of every Python that it starts. Of names
# none is looked up; other programs are sent to a proxy that is not there.
_OFFLINE = """
import socket

LOCAL = (None, '', 'localhost', '127.0.0.1', '::1')

def refuse(host):
  raise OSError(f'a notebook runs offline, and this one asked for {host}')

def method(call):
  def guarded(self, address, *args):
    if self.family != socket.AF_UNIX and address[0] not in LOCAL:
      refuse(address[0])
    return call(self, address, *args)
  return guarded

def lookup(call):
  def guarded(host, *args, **options):
    return call(host, *args, **options) if host in LOCAL else refuse(host)
  return guarded

for name in ('connect', 'connect_ex'):
  setattr(socket.socket, name, method(getattr(socket.socket, name)))
for name in ('getaddrinfo', 'gethostbyname', 'gethostbyname_ex'):
  setattr(socket, name, lookup(getattr(socket, name)))
"""
_NOWHERE = 'http://127.0.0.1:9'
# Warnings are errors, but for those of pyproject.toml and one of the kernel's
# own, which would keep it from leaving.
_WARNINGS = (
  'error',
  'ignore:Error reading persistent compilation cache:UserWarning',
  'ignore:Error writing persistent compilation cache:UserWarning',
  'ignore:Type google._upb._message:DeprecationWarning',
  'ignore:For consistency across implementations:PendingDeprecationWarning',
)


def read(path):
  """Returns the JSON of a notebook."""
  return json.loads(pathlib.Path(path).read_text('utf-8'))


def source(cell) -> str:
  """Returns the text of a cell."""
  return ''.join(cell['source'])


def cells(notebook, kind: str) -> list:
  """Returns the cells of a notebook that are 'code' or 'markdown'."""
  return [cell for cell in notebook['cells'] if cell['cell_type'] == kind]


def outputs(notebook) -> list:
  """Returns the outputs of all cells, in order."""
  return [o for cell in cells(notebook, 'code') for o in cell['outputs']]


def digest(notebook) -> str:
  """Returns a hash of what a notebook executes."""
  code = [source(cell) for cell in cells(notebook, 'code')]
  return hashlib.sha256('\0'.join(code).encode()).hexdigest()[:16]


def normal(notebook) -> str:
  """Returns the text of a notebook's file, the same for the same content.

  Sorted keys, a line a line; no counts of executions, times or editor's notes.
  """
  made = []
  for cell in notebook['cells']:
    kept = {k: cell[k] for k in ('cell_type', 'id')}
    kept |= {'metadata': {}, 'source': _lines(source(cell))}
    if cell['cell_type'] == 'code':
      kept |= {'execution_count': None}
      kept['outputs'] = [_output(o) for o in cell['outputs']]
    made.append(kept)
  metadata = {
    'kernelspec': {
      'display_name': 'Python 3',
      'language': 'python',
      'name': 'python3',
    },
    'language_info': {'name': 'python'},
  }
  if any(cell.get('outputs') for cell in made):
    # Of what the outputs are: they are stale when the code has changed.
    executed = notebook['metadata'].get('executed')
    metadata['executed'] = executed or digest(notebook)
  value = {
    'cells': made,
    'metadata': metadata,
    'nbformat': 4,
    'nbformat_minor': 5,
  }
  return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + '\n'


def _lines(text) -> list[str]:
  """Returns a text as notebooks hold it, each line with its end."""
  return ''.join(text).splitlines(keepends=True)


def _output(output) -> dict:
  kept = dict(output)
  if 'execution_count' in kept:
    kept['execution_count'] = None
  if 'text' in kept:
    kept['text'] = _lines(kept['text'])
  if 'data' in kept:
    kept['data'] = {
      kind: ''.join(value).rstrip('\n')
      if kind.startswith('image/')
      else _lines(value)
      for kind, value in kept['data'].items()
    }
  return kept


def execute(notebook, *, package='', sizes=None, timeout: int = 600) -> dict:
  """Returns a notebook with its outputs, run from start to end.

  Args:
    notebook: JSON of one.
    package: folder that holds the package to import; '': what is installed.
    sizes: environment variables of its parameter cell.
    timeout: seconds a cell.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell raises.
  """
  import nbformat
  from nbclient import NotebookClient
  from traitlets.config import Config

  with tempfile.TemporaryDirectory() as place:
    place = pathlib.Path(place)
    for name in ('start', 'cwd', 'ipython'):
      (place / name).mkdir()
    (place / 'start' / 'sitecustomize.py').write_text(_OFFLINE)
    start = [str(place / 'start'), str(package)]
    environment = os.environ | {
      'PYTHONPATH': os.pathsep.join(filter(None, start)),
      'IPYTHONDIR': str(place / 'ipython'),
      'PIP_NO_INDEX': '1',
      'PYTHONWARNINGS': ','.join(_WARNINGS),
      **{name: _NOWHERE for name in ('http_proxy', 'https_proxy', 'all_proxy')},
      **(sizes or {}),
    }
    sockets = {  # files, so that no port is open either
      'transport': 'ipc',
      'ip': str(place / 'kernel'),
      'connection_file': str(place / 'kernel.json'),
    }
    client = NotebookClient(
      nbformat.reads(json.dumps(notebook), as_version=4),
      config=Config({'AsyncKernelManager': sockets}),
      kernel_name='python3',
      timeout=timeout,
      coalesce_streams=True,
      record_timing=False,
      resources={'metadata': {'path': str(place / 'cwd')}},
    )
    done = client.execute(env=environment)
  # As in a file: images are text by now.
  return json.loads(nbformat.writes(done))


def main(names):
  """Executes notebooks at their own sizes and writes them back."""
  for name in names or NAMES:
    path = FOLDER / f'{name}.ipynb'
    notebook = execute(read(path), timeout=3000)
    notebook['metadata'].pop('executed', None)
    path.write_text(normal(notebook), 'utf-8')
    print(f'{path.name}: {path.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
  main(sys.argv[1:])
