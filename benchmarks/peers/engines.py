"""The workers as their parent sees them: processes that are asked in turn."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = 'meta_rl'
PEERS = ('tunix', 'trl')


class EngineError(Exception):
  """An engine failed: one line that says which, and why."""


def python_of(name: str) -> pathlib.Path:
  """Returns where the interpreter of an engine is, or should be.

  That of a peer is in .venv-NAME, or in $NAME_VENV (TRL_VENV, TUNIX_VENV).
  """
  if name == OURS:
    return pathlib.Path(sys.executable)
  folder = os.environ.get(f'{name.upper()}_VENV') or ROOT / f'.venv-{name}'
  return pathlib.Path(folder).absolute() / 'bin' / 'python'


def command_of(name: str) -> list[str]:
  """Returns how the worker of an engine is started."""
  script = pathlib.Path(__file__).parent / f'with_{name}.py'
  return [str(python_of(name)), str(script)]


def present(names) -> list[str]:
  """Returns the engines that have an environment; says which have not."""
  found = []
  for name in names:
    python = python_of(name)
    if python.exists():
      found.append(name)
    else:
      print(
        f'{name} is left out: there is no {python}. Make it: '
        f'bash benchmarks/peers.sh {name}',
        file=sys.stderr,
      )
  return found


class Engine:
  """One worker. It runs while it is asked, and is stopped otherwise.

  A thread pool that spins while it waits for work, as OpenMP's does, would
  otherwise take the cores from the engine that is being timed.
  """

  def __init__(self, name: str, folder: pathlib.Path):
    """Starts the worker, whose log goes to the folder."""
    self.name = name
    self.log = folder / f'{name}.log'
    with self.log.open('ab') as log:
      self._process = subprocess.Popen(
        command_of(name),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=_environment(name),
      )  # it is stopped behind its first answer, when it dies with this process

  def ask(self, do: str, **request) -> dict:
    """Returns the answer to a request.

    Raises:
      EngineError: it was refused, or the worker is gone.
    """
    self._signal('SIGCONT')
    try:
      line = json.dumps({'do': do, **request}) + '\n'
      self._process.stdin.write(line)
      self._process.stdin.flush()
      answer = self._process.stdout.readline()
    except BrokenPipeError:
      answer = ''
    if not answer:
      said = self.log.read_text('utf-8', 'replace').split('\n')
      last = next((line for line in reversed(said) if line.strip()), 'nothing')
      raise EngineError(
        f'{self.name}: the worker ended; its last line in {self.log}: {last}'
      )
    self._signal('SIGSTOP')
    answer = json.loads(answer)
    if 'error' in answer:
      raise EngineError(f'{self.name}: {do}: {answer["error"]}')
    return answer

  def close(self):
    """Ends the worker."""
    self._signal('SIGCONT')
    self._process.kill()
    self._process.wait()
    with contextlib.suppress(BrokenPipeError):  # of a line not yet sent
      self._process.stdin.close()
    self._process.stdout.close()

  def _signal(self, name):
    self._process.send_signal(getattr(signal, name))


@contextlib.contextmanager
def started(names, folder: pathlib.Path):
  """Gives the engines of these names, and ends them."""
  engines = {}
  try:
    for name in names:
      engines[name] = Engine(name, folder)
    yield engines
  finally:
    for engine in engines.values():
      engine.close()


def _environment(name) -> dict:
  """Returns the variables of a worker: no package of another environment."""
  variables = dict(os.environ)
  variables.pop('PYTHONPATH', None)
  if name == OURS:
    # The package of this checkout, and `limits`.
    own = os.pathsep.join((str(ROOT), str(ROOT / 'benchmarks')))
    return variables | {'PYTHONPATH': own}
  root = os.environ.get('META_RL_CACHE') or '~/.cache/meta_rl/jax'
  cache = pathlib.Path(root).expanduser() / name
  return variables | {
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'TF_CPP_MIN_LOG_LEVEL': '2',
  }
