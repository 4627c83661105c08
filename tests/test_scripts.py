"""The shell scripts: what they refuse, redo, say and pass on.

Nothing is installed here but by the tests marked `full`: a `df` that finds
the disk full stands for 'an install was about to begin'.
"""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

SETUP = '. launch/venv.sh; make_venv "$1"; echo "ready: $PY"'


def command(folder, *, free_gb=1, **variables):
  """Returns how a script is run with $VENV in a folder and a stubbed df."""
  stubs = folder / 'stubs'
  stubs.mkdir(exist_ok=True)
  lines = f'Filesystem 1024-blocks Used Available\\nx 0 0 {free_gb * 2**20}\\n'
  write_script(stubs / 'df', f"printf '{lines}'")
  return {
    'cwd': ROOT,
    'env': os.environ
    | {'VENV': str(folder / 'venv'), 'PYTHON': ''}
    | {'PATH': f'{stubs}:{os.environ["PATH"]}'}
    | variables,
    'stdin': subprocess.DEVNULL,
    'stdout': subprocess.PIPE,
    'stderr': subprocess.PIPE,
    'text': True,
  }


def write_script(path, body):
  """Writes an executable shell script."""
  path.write_text(f'#!/usr/bin/env bash\n{body}\n')
  path.chmod(0o755)


def run(arguments, folder, **options):
  """Runs bash with `arguments` and returns the finished process."""
  options = command(folder, **options)
  return subprocess.run(['bash', *arguments], timeout=120, **options)


def make(folder, extras, **options):
  """Runs `make_venv EXTRAS` alone."""
  return run(['-c', SETUP, 'make', extras], folder, **options)


def refusal(result):
  """Returns the one line with which a script stopped."""
  assert result.returncode == 1, result.stdout + result.stderr
  (line,) = result.stderr.splitlines()
  return line


@pytest.mark.parametrize('script', ['test.sh', 'launch/quickstart.sh'])
def test_a_python_that_is_too_old(script, tmp_path):
  python = tmp_path / 'old python'
  write_script(python, 'echo 3.10')
  result = run([script], tmp_path, free_gb=9, PYTHON=str(python))
  assert f'Python 3.11 or newer is needed; found: {python} (3.10)' in refusal(
    result
  )
  assert not (tmp_path / 'venv').exists()


def test_no_python_at_all(tmp_path):
  result = run(['test.sh'], tmp_path, free_gb=9, PYTHON=str(tmp_path / 'none'))
  assert 'is needed; found: none for PYTHON=' in refusal(result)


@pytest.mark.parametrize('script', ['test.sh', 'launch/quickstart.sh'])
def test_a_short_disk(script, tmp_path):
  line = refusal(run([script], tmp_path, free_gb=3))
  assert f'the disk is short: 3 GB free in {ROOT}, 4 GB needed' in line
  assert not (tmp_path / 'venv').exists()


@pytest.mark.full
def test_no_network(tmp_path):
  """The install stops with one line, and what it left is not trusted."""
  line = refusal(
    run(
      ['test.sh'],
      tmp_path,
      free_gb=9,
      PYTHON=sys.executable,
      # Nothing listens on port 9, so the connection is refused at once.
      PIP_INDEX_URL='http://127.0.0.1:9/simple',
      PIP_CONFIG_FILE=os.devnull,
      PIP_FIND_LINKS='',
      PIP_RETRIES='1',
    )
  )
  assert "no network: pip install -e '.[test]' could not reach" in line
  assert (tmp_path / 'venv' / 'installing').exists()
  assert not list((tmp_path / 'venv' / 'stamps').iterdir())
  assert 'disk' in refusal(make(tmp_path, 'test'))


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
  mine = tmp_path / 'venv' / 'mine'
  mine.mkdir(parents=True)
  assert 'Move it away' in refusal(run(['test.sh'], tmp_path, free_gb=9))
  assert mine.exists()


@pytest.fixture
def whole(tmp_path):
  """A folder whose environment is whole, with the extras test and docs."""
  venv = tmp_path / 'venv'
  (venv / 'bin').mkdir(parents=True)
  (venv / 'stamps').mkdir()
  (venv / 'bin' / 'python').symlink_to(sys.executable)
  code = '. launch/venv.sh; PY=$VENV/bin/python; stamp_key'
  key = run(['-c', code], tmp_path).stdout
  assert len(key) == 65
  (venv / 'stamps' / 'test,docs').write_text(key)
  return tmp_path


@pytest.mark.parametrize('extras', ['test,docs', 'docs', 'test', ''])
def test_a_whole_environment_is_used_as_it_is(whole, extras):
  result = make(whole, extras)
  assert result.returncode == 0
  assert result.stdout == f'ready: {whole}/venv/bin/python\n'
  assert result.stderr == ''


def test_a_missing_extra_is_installed(whole):
  """It takes less than an environment from nothing."""
  line = refusal(make(whole, 'test,tpu'))
  assert f'the disk is short: 1 GB free in {ROOT}, 2 GB needed' in line


def test_an_interrupted_install_is_redone(whole):
  (whole / 'venv' / 'installing').touch()
  assert 'disk' in refusal(make(whole, 'test'))


def test_a_change_of_what_is_installed_is_seen(whole):
  (whole / 'venv' / 'stamps' / 'test,docs').write_text('of an older setup.py')
  assert 'disk' in refusal(make(whole, 'test'))


def test_another_python_makes_another_environment(whole):
  other = whole / 'python'
  write_script(other, 'echo 3.99')
  assert 'disk' in refusal(make(whole, 'test', PYTHON=str(other)))


def pinned(folder, *packages, **options):
  """Runs `make_pinned_venv` alone, in the folder of `make`."""
  code = '. launch/venv.sh; make_pinned_venv "$@"; echo "ready: $PINNED_PY"'
  venv = str(folder / 'venv')
  return run(['-c', code, 'make', venv, *packages], folder, **options)


def test_pinned_packages_are_used_as_they_are(whole):
  (whole / 'venv' / 'stamps' / 'packages').write_text('a==1 b==2\n')
  result = pinned(whole, 'a==1', 'b==2')
  assert result.returncode == 0
  assert result.stdout == f'ready: {whole}/venv/bin/python\n'
  assert result.stderr == ''
  # Others, and what was left half-made, are made anew.
  assert '8 GB needed' in refusal(pinned(whole, 'a==1', 'b==3', free_gb=7))
  (whole / 'venv' / 'installing').touch()
  assert '8 GB needed' in refusal(pinned(whole, 'a==1', 'b==2', free_gb=7))


def test_a_folder_of_someone_else_is_not_pinned(tmp_path):
  (tmp_path / 'venv' / 'mine').mkdir(parents=True)
  assert 'Move it away' in refusal(pinned(tmp_path, 'a==1', free_gb=9))


SLOTS = '--config.rollout.slots=24'
EQUAL = f'--config.total_tokens=420000 --config.total_steps=60 {SLOTS}'
PHASES = f"""\
-m meta_rl.train --config=configs/mrt_countdown.py --workdir=D/mrt {EQUAL}
-m meta_rl.train --config=configs/grpo_countdown.py --workdir=D/grpo {EQUAL} \
--config.optimizer.learning_rate=5e-5
-m meta_rl.evaluate --num_problems=2048 --workdir=D/mrt
-m meta_rl.evaluate --num_problems=2048 --workdir=D/grpo
-m meta_rl.evaluate --num_problems=2048 --config=configs/mrt_countdown.py \
{SLOTS} --base --workdir=D/base
-m meta_rl.report D/base D/grpo D/mrt --out=D/report.html
"""


@pytest.fixture
def quickstart(tmp_path):
  """Starts quickstart.sh in a tree whose python is a given shell script."""
  launch = tmp_path / 'launch'
  launch.mkdir()
  source = (ROOT / 'launch' / 'quickstart.sh').read_text('utf-8')
  (launch / 'quickstart.sh').write_text(source)
  python = tmp_path / 'python'
  (launch / 'venv.sh').write_text(f'make_venv() {{ PY={python}; }}\n')

  def start(body, **variables):
    variables = {'JAX_PLATFORMS': 'cpu'} | variables
    write_script(python, f'echo "$@" >>{tmp_path}/calls\n{body}')
    options = command(tmp_path, QUICKSTART_DIR='D', **variables)
    script = launch / 'quickstart.sh'
    # Tests that were started in the background inherit an ignored SIGINT,
    # which bash cannot trap: hand it the default one.
    launcher = (
      'import os, signal, sys; '
      'signal.signal(signal.SIGINT, signal.SIG_DFL); '
      "os.execvp('bash', ['bash', sys.argv[1]])"
    )
    return subprocess.Popen(
      [sys.executable, '-c', launcher, str(script)], **options
    )

  return start


@pytest.mark.parametrize('tokens', ['abc', '0', '-5', '1e5'])
def test_quickstart_refuses_tokens_at_once(tokens, tmp_path):
  result = subprocess.run(
    ['bash', str(ROOT / 'launch' / 'quickstart.sh')],
    **command(tmp_path, QUICKSTART_TOKENS=tokens),
  )
  output, errors = result.stdout, result.stderr
  assert result.returncode == 1
  assert output == ''
  assert f'QUICKSTART_TOKENS={tokens}, ' in errors
  assert errors.count('\n') == 1


@pytest.mark.parametrize('at_once', [1, 2, 3])
def test_quickstart_runs_the_phases_in_order(at_once, quickstart, tmp_path):
  process = quickstart('exit 0', QUICKSTART_AT_ONCE=str(at_once))
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 0
  assert errors == ''
  phases, found = PHASES.splitlines(), (tmp_path / 'calls').read_text()
  # Within a phase the order is that of the processes.
  parts = [slice(0, 2), slice(2, 5), slice(5, 6)]
  if at_once == 1:
    parts = [slice(0, 6)]
    assert found == PHASES
  for part in parts:
    assert sorted(found.splitlines()[part]) == sorted(phases[part])
  assert output.count('\n== ') == 3 * 2 + 1
  last = output.splitlines()[-1]
  assert re.fullmatch(r'== done in 0 min \d+ s: D/report\.html', last)
  assert not list((tmp_path / 'D').iterdir())


def test_quickstart_runs_side_by_side(quickstart, tmp_path):
  """Each of the first two waits for the other, and all lines are named."""
  here = f'touch {tmp_path}/$$; '
  wait = f'while [ $(ls {tmp_path}/[0-9]* | wc -l) -lt 2 ]; do sleep 0.05; done'
  process = quickstart(
    f'case "$2" in *report) exit ;; esac\n{here} {wait}\n'
    'echo "ran $2"; printf "no newline" >&2',
    QUICKSTART_AT_ONCE='3',
  )
  output, errors = process.communicate(timeout=60)
  assert (process.returncode, errors) == (0, '')
  for name in ('MRT', 'GRPO'):
    assert f'{name}: ran meta_rl.train\n' in output
    assert f'{name}: ran meta_rl.evaluate\n' in output
    assert f'{name}: no newline\n' in output
  assert 'base: ran meta_rl.evaluate\n' in output
  assert output.index('GRPO: ran meta_rl.train') < output.index('evaluating')


@pytest.mark.parametrize('free, at_once', [(4.9, 1), (5.1, 3)])
def test_quickstart_with_little_memory(free, at_once, quickstart, tmp_path):
  """One run after the other, which needs no names in front of lines."""
  memory = tmp_path / 'meminfo'
  memory.write_text(f'MemFree: 9 kB\nMemAvailable: {free * 2**20:.0f} kB\n')
  process = quickstart('echo "ran $2"', MEMINFO=str(memory))
  output, errors = process.communicate(timeout=60)
  assert (process.returncode, errors) == (0, '')
  alone = at_once == 1 or len(os.sched_getaffinity(0)) == 1
  assert ('\nran meta_rl.train' in output) == alone


def test_quickstart_says_what_helps_where_memory_was_short(quickstart):
  kill = 'case "$*" in *grpo*) kill -9 $$ ;; esac'
  process = quickstart(kill, QUICKSTART_AT_ONCE='2')
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 137
  assert errors.endswith('need less. Go on with QUICKSTART_AT_ONCE=1\n')


def test_quickstart_ends_what_runs_beside_a_failed_run(quickstart, tmp_path):
  """GRPO fails: MRT saves and ends, and nothing is evaluated."""
  saved = tmp_path / 'saved'
  process = quickstart(
    'case "$*" in *grpo*) sleep 0.5; echo no room >&2; exit 9 ;; esac\n'
    f"trap 'sleep 0.3; touch {saved}; exit 75' TERM\n"
    'for i in {1..300}; do sleep 0.1; done',
    QUICKSTART_AT_ONCE='2',
  )
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 9
  assert saved.exists()
  assert 'GRPO: no room\n' in output
  assert 'stopped while training MRT and GRPO (exit code 9). Run the' in errors
  assert (tmp_path / 'calls').read_text().count('\n') == 2


def test_quickstart_stops_at_a_failed_phase(quickstart, tmp_path):
  process = quickstart(
    'case "$*" in *evaluate*grpo) exit 7 ;; esac', QUICKSTART_AT_ONCE='1'
  )
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 7
  assert (
    'stopped while evaluating MRT, GRPO and the base policy (exit' in errors
  )
  assert (tmp_path / 'calls').read_text().count('\n') == 4


@pytest.mark.parametrize(
  'sent, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_quickstart_lets_the_command_save(quickstart, tmp_path, sent, code):
  """The commands get a SIGTERM, and the script waits until they are done."""
  saved = tmp_path / 'saved'
  process = quickstart(
    f"trap 'sleep 0.3; touch {saved}.$$; exit 3' TERM\n"
    f'touch {tmp_path}/begun.$$\n'
    'for i in {1..300}; do sleep 0.1; done',
    QUICKSTART_AT_ONCE='2',
  )
  for _ in range(200):
    if len(list(tmp_path.glob('begun.*'))) == 2:
      break
    time.sleep(0.05)
  process.send_signal(sent)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == code
  assert len(list(tmp_path.glob('saved.*'))) == 2
  assert f'stopped while training MRT and GRPO (exit code {code})' in errors


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_quickstart_ends_with_a_report(tmp_path):
  environment = os.environ | {
    'QUICKSTART_DIR': str(tmp_path / 'runs'),
    # Two steps of training each and a batch of problems; all else is as it is.
    'QUICKSTART_TOKENS': '16000',
    'QUICKSTART_PROBLEMS': '256',
  }
  # As on a user's machine: with its own cache and devices.
  for name in ('META_RL_CACHE', 'JAX_COMPILATION_CACHE_DIR'):
    environment.pop(name, None)
  process = subprocess.run(
    ['bash', str(ROOT / 'launch' / 'quickstart.sh')],
    env=environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=1200,
  )
  assert process.returncode == 0, (
    process.stdout[-3000:] + process.stderr[-3000:]
  )
  assert (tmp_path / 'runs' / 'report.html').stat().st_size > 10_000
  assert process.stdout.splitlines()[-1].startswith('== done in ')
