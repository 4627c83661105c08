"""launch/: local.sh, xpk.sh, slurm.sbatch, jobset.py, and names of slices.

launch/tpu_vm.py has tests of its own.
"""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT

from meta_rl import sharding

# A config value as bad as they come.
NASTY = """--config.x=it's a "b c"  $HOME $(id) `id` \\ ; {x}: #é"""
# What a process says of itself; no jax.
SAY = (
  'import os, sys; e = os.environ; '
  "print(e['META_RL_PROCESS_ID'], 'of', e['META_RL_NUM_PROCESSES'], "
  "e['META_RL_COORDINATOR'], e['JAX_NUM_CPU_DEVICES'], sys.argv[1:])"
)


def load(name, monkeypatch):
  """Returns a module of launch/, which is no package."""
  monkeypatch.syspath_prepend(str(ROOT / 'launch'))
  spec = importlib.util.spec_from_file_location(
    name, ROOT / 'launch' / f'{name}.py'
  )
  module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, name, module)
  spec.loader.exec_module(module)
  return module


def run(script, *words, **variables):
  """Runs a script of launch/ and returns the finished process."""
  return subprocess.run(
    ['bash', str(ROOT / 'launch' / script), *words],
    env=os.environ | variables,
    capture_output=True,
    text=True,
    timeout=60,
  )


def refusal(result):
  """Returns the one line with which a script stopped."""
  assert result.returncode == 1, result.stdout + result.stderr
  (line,) = result.stderr.splitlines()
  return line


def printed(dry):
  """Returns the words of the one command that a dry run prints."""
  assert dry.returncode == 0, dry.stderr
  # printf %q writes what a bash reads: it, not shlex, knows $'…'.
  read = f'for x in {dry.stdout.strip()}; do printf "%s\\0" "$x"; done'
  words = subprocess.check_output(['bash', '-c', read], text=True)
  return words.split('\0')[:-1]


# ---- names of slices


@pytest.mark.parametrize(
  'name, grid, hosts, chips_per_host, gcloud',
  [
    # 16 chips, 4 on a host
    ('v5e-16', '4x4', 4, 4, 'v5litepod-16'),
    ('v5litepod-16', '4x4', 4, 4, 'v5litepod-16'),
    ('v5e:4x4', '4x4', 4, 4, 'v5litepod-16'),
    # up to 8 chips of v5e and v6e are on one host
    ('v5e-8', '2x4', 1, 8, 'v5litepod-8'),
    ('v6e-1', '1x1', 1, 1, 'v6e-1'),
    # TensorCores: 64 are 32 chips
    ('v5p-64', '2x4x4', 8, 4, 'v5p-64'),
    ('v5p:4x8x8', '4x8x8', 64, 4, 'v5p-512'),
    ('v4-8', '2x2x1', 1, 4, 'v4-8'),
    ('tpu7x:2x2x2', '2x2x2', 2, 4, ''),
  ],
)
def test_slices(name, grid, hosts, chips_per_host, gcloud, monkeypatch):
  tpu = load('slices', monkeypatch).parse(name)
  assert (tpu.grid, tpu.hosts, tpu.chips_per_host) == (
    *(grid, hosts, chips_per_host),
  )
  assert tpu.accelerator_type == gcloud
  assert tpu.chips == hosts * chips_per_host


@pytest.mark.parametrize(
  'name, text',
  [
    ('v5e-17', 'v5e-16 (4x4)'),
    ('v5e', 'such as v5e-16'),
    ('h100-8', 'give a generation (v4, v5e, v5p, v6e, tpu7x)'),
    ('v5p:3x3x3', 'v5p-64 (2x4x4)'),
  ],
)
def test_slices_that_are_none(name, text, monkeypatch):
  with pytest.raises(ValueError) as error:
    load('slices', monkeypatch).parse(name)
  assert text in str(error.value)
  assert name in str(error.value)


# ---- what gcloud answers


@pytest.mark.parametrize(
  'err, line',
  [
    # gcloud's own error
    ('Waiting...\nERROR: (gcloud) no\nTry again', 'ERROR: (gcloud) no'),
    # what a worker says comes before gcloud's words about it
    (
      'SSH: Attempting\nworker.sh on w-1: no Python\n##### Command execution '
      'on worker 1 failed with exit status 1. Continuing.\nERROR: x',
      'worker.sh on w-1: no Python',
    ),
    ('bash: line 1: unexpected EOF\n##### Command failed', 'unexpected EOF'),
    ('', 'exit code 3'),
  ],
)
def test_the_line_that_says_most(err, line, monkeypatch):
  gcloud = load('gcloud', monkeypatch)
  assert gcloud.Result(3, err=err).error.endswith(line)


@pytest.mark.parametrize(
  'text, name, hosts, reason',
  [
    ('{"state": "READY", "networkEndpoints": [{}, {}]}', 'READY', 2, ''),
    # a queued resource
    ('{"state": {"state": "ACTIVE"}}', 'ACTIVE', 0, ''),
    (
      '{"state": {"state": "FAILED", "failedData": '
      '{"error": {"message": "Quota"}}}}',
      *('FAILED', 0, 'Quota'),
    ),
    ('{}', 'STATE_UNSPECIFIED', 0, ''),
  ],
)
def test_states(text, name, hosts, reason, monkeypatch):
  state = load('gcloud', monkeypatch).State.of(text)
  assert (state.name, state.hosts, state.reason) == (name, hosts, reason)


@pytest.mark.parametrize('text', ['', 'Listed 0 items.', '[]'])
def test_what_is_no_state(text, monkeypatch):
  with pytest.raises(ValueError):
    load('gcloud', monkeypatch).State.of(text)


# ---- what launchers tell the processes


@pytest.fixture
def joined(monkeypatch):
  """What jax.distributed.initialize was called with."""
  calls = []
  monkeypatch.setattr(
    'jax.distributed.initialize', lambda *a, **k: calls.append((a, k))
  )
  for name in ('COORDINATOR', 'NUM_PROCESSES', 'PROCESS_ID'):
    monkeypatch.delenv(f'META_RL_{name}', raising=False)
  return calls


def test_processes_join_by_the_environment(joined, monkeypatch, capsys):
  sharding.initialize_from_environment()
  assert not joined
  assert not capsys.readouterr().out
  monkeypatch.setenv('META_RL_COORDINATOR', 'auto')
  sharding.initialize_from_environment()
  assert joined.pop()[0] == ()
  # The line that launch/worker.sh looks for.
  assert capsys.readouterr().out == 'process 0 of 1 (1 of 1 devices)\n'
  monkeypatch.setenv('META_RL_COORDINATOR', 'localhost:1234')
  monkeypatch.setenv('META_RL_NUM_PROCESSES', '4')
  monkeypatch.setenv('META_RL_PROCESS_ID', '3')
  sharding.initialize_from_environment()
  assert joined.pop()[0] == ('localhost:1234', 4, 3)


def test_a_wrong_environment_is_refused(joined, monkeypatch):
  monkeypatch.setenv('META_RL_COORDINATOR', 'localhost:1234')
  with pytest.raises(ValueError, match='give both num_processes'):
    sharding.initialize_from_environment()
  monkeypatch.setenv('META_RL_NUM_PROCESSES', 'two')
  with pytest.raises(ValueError, match="META_RL_NUM_PROCESSES='two'"):
    sharding.initialize_from_environment()
  assert not joined


# ---- local.sh


def test_local_processes():
  """Each with its number, the same coordinator and the command unharmed."""
  flags = ['-n', '3', '-d', '2', '--']
  result = run('local.sh', *flags, sys.executable, '-c', SAY, NASTY)
  assert result.returncode == 0, result.stderr
  lines = sorted(result.stdout.splitlines())
  port = lines[0].split()[4].partition(':')[2]
  assert lines == [
    f'[{i}] {i} of 3 localhost:{port} 2 {[NASTY]}' for i in range(3)
  ]


def test_local_all_stop_when_one_dies():
  """The code is that of the first; the others get to save."""
  script = (
    '[ "$META_RL_PROCESS_ID" != 1 ] || exit 7; '
    "trap 'echo saved; exit 75' TERM; while :; do sleep 0.1; done"
  )
  result = run('local.sh', '-n', '3', '--', 'bash', '-c', script)
  assert result.returncode == 7
  assert sorted(result.stdout.splitlines()) == ['[0] saved', '[2] saved']
  assert result.stderr.splitlines() == [
    'local.sh: process 1 ended with exit code 7: stopping the others'
  ]


def test_local_one_that_does_not_listen_is_ended():
  script = '[ "$META_RL_PROCESS_ID" != 0 ] || exit 3; trap "" TERM; sleep 60'
  began = time.monotonic()
  result = run('local.sh', '--', 'bash', '-c', script, LOCAL_GRACE='1')
  assert result.returncode == 3
  assert time.monotonic() - began < 40


def test_local_passes_a_signal_on():
  script = "trap 'exit 75' TERM; echo up; while :; do sleep 0.1; done"
  process = subprocess.Popen(
    ['bash', str(ROOT / 'launch' / 'local.sh'), '--', 'bash', '-c', script],
    stdout=subprocess.PIPE,
    text=True,
  )
  for _ in range(2):
    process.stdout.readline()
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 75


def test_local_dry_run_prints_what_runs():
  words = [sys.executable, '-c', SAY, NASTY]
  flags = ['-n', '2', '-d', '4', '--dry-run', '--']
  dry = run('local.sh', *flags, *words, LOCAL_PORT='1234')
  lines = dry.stdout.splitlines()
  assert shlex.split(lines[1]) == [
    *('env', 'JAX_PLATFORMS=cpu', 'JAX_NUM_CPU_DEVICES=4'),
    *('META_RL_COORDINATOR=localhost:1234', 'META_RL_NUM_PROCESSES=2'),
    *('META_RL_PROCESS_ID=1', *words),
  ]
  said = subprocess.check_output(['bash', '-c', lines[1]], text=True)
  assert said == f'1 of 2 localhost:1234 4 {[NASTY]}\n'


@pytest.mark.parametrize(
  'words, text',
  [
    (['-n', 'x', '--', 'true'], "-n 'x': give a whole number above 0"),
    (['-n', '0', '--', 'true'], "-n '0': give a whole number above 0"),
    (['-n'], "-n '': give a whole number above 0"),
    (['-q', '--', 'true'], "'-q' is given; allowed: -n N, -d DEVICES"),
    (['-n', '2'], "no command is given: put it behind '--'"),
    (['--', 'no such'], "'no such' is no command here"),
  ],
)
def test_local_mistakes(words, text):
  assert text in refusal(run('local.sh', *words))


# ---- xpk.sh

# Of `xpk workload create --help`, xpk 1.
XPK_FLAGS = {
  *('--cluster', '--workload', '--tpu-type', '--num-slices', '--docker-image'),
  *('--priority', '--max-restarts', '--restart-on-exit-codes', '--command'),
  *('--termination-grace-period-seconds', '--env-file', '--spot', '--project'),
  '--zone',
}
XPK = ['--cluster=c', '--workload=w', '--tpu-type=v5e-16', '--docker-image=i']


def test_xpk(tmp_path):
  """What the dry run prints is what runs, and secrets are in neither."""
  fake = tmp_path / 'xpk'
  record = tmp_path / 'record'
  fake.write_text(f'#!/bin/sh\nprintf "%s\\0" xpk "$@" >{record}\n')
  fake.chmod(0o755)
  variables = {
    'PATH': f'{tmp_path}:{os.environ["PATH"]}',
    'TMPDIR': str(tmp_path),
    'MY_KEY': 'hidden',
  }
  words = [*XPK, '--spot', '--env=MY_KEY', '--', 'python', '-m', 'x', NASTY]
  dry = run('xpk.sh', '--dry-run', *words, **variables)
  assert not record.exists()
  result = run('xpk.sh', *words, **variables)
  assert result.returncode == 0, result.stderr
  argv = record.read_text().split('\0')[:-1]
  assert printed(dry) == argv
  assert argv[:3] == ['xpk', 'workload', 'create']
  flags = dict(word.partition('=')[::2] for word in argv[3:])
  assert set(flags) <= XPK_FLAGS
  assert flags['--tpu-type'] == 'v5litepod-16'
  assert '75' in flags['--restart-on-exit-codes'].split(',')
  show = ['bash', '-c', flags['--command'].replace('python -m', 'printf %s')]
  assert subprocess.check_output(show, text=True) == f'x{NASTY}'
  assert 'hidden' not in str(argv)
  with open(flags['--env-file']) as file:
    assert file.read() == 'MY_KEY\n'


@pytest.mark.parametrize(
  'words, text',
  [
    ([*XPK[1:], '--', 'x'], '--cluster is missing: give --cluster=NAME'),
    ([*XPK], "no command is given: put it behind '--'"),
    ([*XPK, '--gpu', '--', 'x'], "'--gpu' is given; allowed: --cluster="),
    ([*XPK, '--tpu-type=v5e-17', '--', 'x'], "'v5e-17' is not a slice of v5e"),
    ([*XPK, '--env=A=b', '--', 'x'], '--env=A… is given; give a name alone'),
    ([*XPK, '--env=NOT_SET', '--', 'x'], 'NOT_SET is not set here'),
    ([*XPK, '--num-slices=x', '--', 'x'], 'give whole numbers'),
  ],
)
def test_xpk_mistakes(words, text):
  assert text in refusal(run('xpk.sh', *words))


# ---- slurm.sbatch


def test_slurm(tmp_path):
  """srun gets the command; code 75 queues the job again and is passed on."""
  log = tmp_path / 'log'
  for name, code in (('srun', 75), ('scontrol', 0)):
    fake = tmp_path / name
    fake.write_text(
      f'#!/bin/sh\nprintf "%s\\0" {name} "$@" >>{log}\nexit {code}'
    )
    fake.chmod(0o755)
  variables = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '9'}
  result = run('slurm.sbatch', 'python', NASTY, **variables)
  assert result.returncode == 75
  srun = ['srun', '--kill-on-bad-exit=1', '--label', 'python', NASTY]
  assert log.read_text().split('\0')[:-1] == [*srun, 'scontrol', 'requeue', '9']
  dry = run('slurm.sbatch', '--dry-run', 'python', NASTY)
  assert printed(dry) == ['env', 'META_RL_COORDINATOR=auto', *srun]


def test_slurm_asks_for_a_task_a_gpu():
  text = (ROOT / 'launch' / 'slurm.sbatch').read_text()
  asked = dict(
    line.removeprefix('#SBATCH --').partition('=')[::2]
    for line in text.splitlines()
    if line.startswith('#SBATCH')
  )
  assert asked['ntasks-per-node'] == asked['gpus-per-node']
  # Without B: the signal goes to the processes, not to this script.
  assert asked['signal'] == 'TERM@120'
  assert 'requeue' in asked


def test_slurm_mistakes():
  assert 'no command is given' in refusal(run('slurm.sbatch'))
  assert 'not in a Slurm job' in refusal(
    run('slurm.sbatch', 'x', SLURM_JOB_ID='')
  )
  uneven = {'SLURM_NTASKS_PER_NODE': '1', 'SLURM_GPUS_ON_NODE': '8'}
  assert 'give as many tasks as GPUs' in refusal(
    run('slurm.sbatch', 'x', **uneven)
  )


# ---- jobset.py


def manifest(monkeypatch, *words):
  """Returns what jobset.py prints, read as YAML."""
  jobset = load('jobset', monkeypatch)
  return yaml.safe_load(jobset.main(list(words)))


JOBSET = ['--name=mrt', '--slice=v5p-64', '--image=gcr.io/p/i:1']


def test_jobset(monkeypatch):
  words = [*JOBSET, '--num-slices=2', '--', 'python', '-m', 'x', NASTY]
  whole = manifest(monkeypatch, *words)
  assert (whole['apiVersion'], whole['kind']) == (
    *('jobset.x-k8s.io/v1alpha2', 'JobSet'),
  )
  spec = whole['spec']
  assert spec['network'] == {'enableDNSHostnames': True}
  assert spec['failurePolicy']['maxRestarts'] == 20
  (job,) = spec['replicatedJobs']
  assert job['replicas'] == 2
  # 64 TensorCores: 32 chips, 4 a host, 8 hosts
  hosts = job['template']['spec']
  assert hosts['parallelism'] == hosts['completions'] == 8
  assert hosts['backoffLimit'] == 0
  (rule,) = hosts['podFailurePolicy']['rules']
  assert rule['onExitCodes']['values'] == [2, 3]
  pod = hosts['template']['spec']
  assert pod['restartPolicy'] == 'Never'
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
    'cloud.google.com/gke-tpu-topology': '2x4x4',
  }
  (container,) = pod['containers']
  assert container['name'] == rule['onExitCodes']['containerName']
  assert container['image'] == 'gcr.io/p/i:1'
  # Kubernetes makes one of two dollars.
  command = [word.replace('$$', '$') for word in container['command']]
  assert command == ['python', '-m', 'x', NASTY]
  assert '$(id)' not in container['command'][-1].replace('$$', '')
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert container['resources']['requests'] == {'google.com/tpu': 4}
  assert container['env'] == [{'name': 'META_RL_COORDINATOR', 'value': 'auto'}]
  assert 'envFrom' not in container


def test_jobset_on_spot_with_secrets(monkeypatch):
  words = [*JOBSET, '--slice=v5e-8', '--spot', '--secret=keys', '--', 'x']
  (job,) = manifest(monkeypatch, *words)['spec']['replicatedJobs']
  pod = job['template']['spec']['template']['spec']
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  assert pod['tolerations'][0]['key'] == 'cloud.google.com/gke-spot'
  (container,) = pod['containers']
  assert container['envFrom'] == [{'secretRef': {'name': 'keys'}}]
  assert container['resources']['limits'] == {'google.com/tpu': 8}


@pytest.mark.parametrize(
  'words, text',
  [
    (JOBSET, "no command is given: put it behind '--'"),
    ([*JOBSET[1:], '--', 'x'], '--name'),
    ([*JOBSET, '--name=A_b', '--', 'x'], "--name='A_b': give 1 to 40"),
    ([*JOBSET, '--secret=k=v', '--', 'x'], "--secret='k=v': give"),
    ([*JOBSET, '--slice=v5p-65', '--', 'x'], "'v5p-65' is not a slice"),
    ([*JOBSET, '--num-slices=0', '--', 'x'], 'at least 1 slice'),
    ([*JOBSET, '--gpu', '--', 'x'], '--gpu'),
  ],
)
def test_jobset_mistakes(words, text, monkeypatch):
  with pytest.raises(SystemExit) as stop:
    manifest(monkeypatch, *words)
  assert text in stop.value.code
  assert stop.value.code.startswith('jobset.py: ')
  assert '\n' not in stop.value.code


@pytest.mark.full
def test_the_command_of_the_documents(tmp_path):
  """docs/pods.md, 'Try it here first'."""
  text = (ROOT / 'docs' / 'pods.md').read_text()
  _, _, rest = text.partition('## Try it here first')
  command = rest.split('```bash\n')[1].split('```')[0]
  assert 'launch/local.sh' in command
  found = subprocess.run(
    ['bash', '-c', command.replace('runs/two', str(tmp_path / 'run'))],
    cwd=ROOT,
    env=os.environ
    | {'PATH': f'{os.path.dirname(sys.executable)}:' + os.environ['PATH']},
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert found.returncode == 0, found.stderr
  assert 'step 4/4' in found.stdout + found.stderr
