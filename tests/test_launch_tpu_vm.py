"""launch/tpu_vm.py against a stand-in gcloud: the flow, its failures, secrets.

No cloud is reached and no jax is started: the run is a shell script that counts
steps and keeps them in a folder that stands for a bucket.
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import standin_gcloud
from conftest import ROOT

# Counts to 6, from where the bucket says; process numbers first. A run that
# begins at 0 waits before step $HOLD until there is a file `go`.
RUN = r"""
echo "process ${INDEX:-$WORKER} of ${COUNT:-$WORKERS} (x)"
bucket=$1 steps=$1/steps.$WORKER
printf '<%s>\n' "${@:2}"
echo "cwd ${PWD##*/} coordinator $META_RL_COORDINATOR"
trap 'echo saving; exit 75' TERM
from=$(cat "$steps" 2>/dev/null || echo 0)
[ "$from" = 0 ] || echo "resumed at $from"
for ((i = from + 1; i <= 6; i++)); do
  while [ "$from$i" = "0${HOLD:-}" ] && [ ! -e "$bucket/go" ]; do
    sleep 0.1
  done
  echo "step $i"
  echo "$i" >"$steps"
done
exit "$(cat "$bucket/code.$WORKER" 2>/dev/null || echo 0)"
"""
VENV = 'make_venv() { echo "installing $1"; touch "$HOME/installed.$1"; }'
# A config value as bad as they come.
NASTY = """--config.x=it's a "b c"  $HOME `id` \\ ; é"""
SECRET = 's3cr3t \'of" mine'


@pytest.fixture
def checkout(tmp_path):
  """A small git checkout with something to run."""
  folder = tmp_path / 'checkout'
  (folder / 'launch').mkdir(parents=True)
  (folder / 'run.sh').write_text(RUN)
  (folder / 'launch' / 'venv.sh').write_text(VENV)
  (folder / '.gitignore').write_text('ignored\n')
  git = ['git', '-c', 'user.name=x', '-c', 'user.email=x', '-C', str(folder)]
  for words in (['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'x']):
    subprocess.run([*git, *words], check=True)
  (folder / 'ignored').write_text('')
  return folder


@pytest.fixture
def launch(tmp_path, checkout):
  """A function that runs the launcher; see `Launched`."""
  return lambda *flags, **options: Launched(
    tmp_path, checkout, flags, **options
  )


class Launched:
  """One run of tpu_vm.py.

  Args:
    tmp_path: of the test.
    checkout: the code.
    flags: further ones.
    command: what to run instead.
    variables: of the environment.
    wait: whether to wait for its end.
    plan: of the stand-in.
  """

  def __init__(
    self,
    tmp_path,
    checkout,
    flags,
    *,
    command=None,
    variables=None,
    wait=True,
    **plan,
  ):
    self.cloud = tmp_path / 'cloud'
    self.bucket = tmp_path / 'bucket'
    self.bucket.mkdir(exist_ok=True)
    if not (self.cloud / 'environment').exists():
      environment = standin_gcloud.install(self.cloud, **plan)
      (self.cloud / 'environment').write_text(json.dumps(environment))
    else:
      environment = json.loads((self.cloud / 'environment').read_text())
    own = ['--name=mrt', '--zone=us-west4-a', '--accelerator=v5e-16']
    own += [f'--code={checkout}', '--poll_seconds=0.1', '--backoff_seconds=0']
    command = command or ['bash', 'run.sh', str(self.bucket), NASTY]
    self.process = subprocess.Popen(
      [
        *(sys.executable, str(ROOT / 'launch' / 'tpu_vm.py'), *own, *flags),
        *('--', *command),
      ],
      env=os.environ | environment | (variables or {}),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    if wait:
      self.finish()

  def finish(self):
    """Waits for its end."""
    self.out, self.err = self.process.communicate(timeout=60)
    self.code = self.process.returncode
    assert 'Traceback' not in self.err, self.err
    return self

  @property
  def calls(self):
    """The calls of gcloud."""
    return standin_gcloud.calls(self.cloud)

  @property
  def steps(self):
    """The calls as words: 'create', 'install' and so on."""
    names = []
    for call in self.calls:
      name = call[4]
      if name == 'ssh':
        command = next(x for x in call if x.startswith('--command='))
        name = next(s for s, x in standin_gcloud.STEPS.items() if x in command)
      names.append(name)
    return names

  @property
  def left(self):
    """The state of the TPU that is left, '' for none."""
    return json.loads((self.cloud / 'tpu.json').read_text()).get('state', '')

  @property
  def error(self):
    """The one line of error."""
    (line,) = self.err.splitlines()
    return line


FLOW = (
  'describe create describe connect prepare scp install start report follow '
  'finish delete'
).split()


def without_repeats(names):
  """Returns the names without those that poll."""
  return [x for i, x in enumerate(names) if i == 0 or x != names[i - 1]]


def printed(run):
  """Returns the commands that a dry run prints, as words."""
  assert run.code == 0, run.err
  assert not run.err
  assert not run.calls
  return [shlex.split(line) for line in run.out.splitlines()]


def test_the_whole_flow(launch):
  """As the dry run prints it: a line a command, quoted; it runs nothing."""
  dry = launch('--dry-run')
  commands = printed(dry)
  assert not (dry.cloud / 'cache').exists()
  run = launch('--report_seconds=60')
  assert run.code == 0, run.err
  assert without_repeats(run.steps) == FLOW
  assert [x[0] for x in commands if x[0] != 'gcloud'] == ['git']
  commands = [x for x in commands if x[0] == 'gcloud']
  assert without_repeats(commands) == without_repeats(run.calls)
  assert not run.left
  lines = run.out.splitlines()
  assert [x for x in lines if x.startswith('step')] == [
    f'step {i}' for i in range(1, 7)
  ]
  assert f'<{NASTY}>' in lines
  assert 'cwd code coordinator auto' in lines
  assert '== 2 of 2 processes have joined' in lines
  assert lines[-2:] == ['== done', '== deleting mrt']
  # Every worker ran it; worker 0's output alone is shown.
  assert sorted(p.name for p in run.bucket.iterdir()) == ['steps.0', 'steps.1']
  assert 'process 1 of 2 (x)' not in lines
  for i in range(2):
    worker = run.cloud / f'worker{i}'
    assert (worker / 'installed.tpu').exists()
    code = worker / 'meta_rl_launch' / 'code'
    assert not (code / 'ignored').exists()
    assert not (code / '.git').exists()
    assert (worker / 'meta_rl_launch').stat().st_mode & 0o777 == 0o700


def test_create_asks_for_what_the_flags_say(launch):
  flags = ['--spot', '--project=p', '--create_flag=--subnetwork=s']
  commands = printed(launch('--dry-run', '--internal-ip', *flags))
  (create,) = (x for x in commands if x[4] == 'create')
  assert create[3:] == [
    *('tpu-vm', 'create', 'mrt', '--zone=us-west4-a', '--project=p'),
    *('--accelerator-type=v5litepod-16', '--version=v2-alpha-tpuv5-lite'),
    *('--spot', '--internal-ips', '--subnetwork=s', '--quiet'),
  ]
  for command in commands:
    if command[0] == 'gcloud':
      standin_gcloud.parse(command[1:])


def test_queued_and_preempted(launch):
  """Create, wait, run, lose it, and go on where the bucket says."""
  states = ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
  run = launch(
    *('--queued', '--spot'),
    states=states,
    preempt='step 3',
    variables={'HOLD': '4'},
  )
  assert run.code == 0, run.err
  once = FLOW[:-2]
  assert (
    without_repeats(run.steps)
    == [
      *once,
      *('describe', 'delete', 'create'),  # it is found SUSPENDED
      *FLOW[2:],
    ]
  )
  create = next(call for call in run.calls if call[4] == 'create')
  assert {'--node-id=mrt', '--spot'} < set(create)
  assert '--runtime-version=v2-alpha-tpuv5-lite' in create
  assert '== mrt is SUSPENDED and the run is lost: restart 1 of 20 in 0 s' in (
    run.out
  )
  assert 'resumed at 3' in run.out.splitlines()
  assert (run.bucket / 'steps.1').read_text() == '6\n'
  assert 'half a li' not in run.out
  assert not run.left
  for state in states[:2]:
    assert f'== mrt is {state}: waiting' in run.out


CAPACITY = 'ERROR: (gcloud) There is no more capacity in the zone "us-west4-a"'


def test_restarts_are_counted(launch):
  run = launch('--max_restarts=1', fail={'create': [9, 1, CAPACITY]})
  assert run.code == 75
  assert 'given up after 1 restarts (--max_restarts)' in run.error
  assert 'Run the same command again' in run.error
  assert run.steps.count('create') == 2


def test_a_broken_connection_is_taken_up_again(launch):
  run = launch(drop='step 3')
  assert run.code == 0, run.err
  assert run.steps.count('create') == run.steps.count('start') == 1
  assert run.steps.count('follow') == 2
  shown = [x for x in run.out.splitlines() if x.startswith('step')]
  assert shown == [f'step {i}' for i in range(1, 7)]


PERMISSION = 'ERROR: (gcloud) PERMISSION_DENIED: no'
ONCE_EACH = {
  'create': f'creating mrt failed: {PERMISSION}',
  'connect': 'connecting to mrt failed: ERROR: no',
  'prepare': 'preparing mrt failed: ERROR: no',
  'scp': 'copying to mrt failed: ERROR: no',
  'install': 'installing on mrt failed: ERROR: no',
  'start': 'starting on mrt failed: ERROR: no',
}


@pytest.mark.parametrize('step', ONCE_EACH)
def test_a_step_that_fails(step, launch):
  """One line, exit code 1, and nothing is left."""
  text = PERMISSION if step == 'create' else 'ERROR: no'
  run = launch(fail={step: [9, 3, text]})
  assert run.code == 1
  assert run.error.startswith(f'tpu_vm.py: {ONCE_EACH[step]}')
  assert run.steps[-1] == 'delete'
  assert step == 'create' or not run.left
  assert step == 'start' or 'start' not in run.steps


def test_a_step_that_fails_with_keep(launch):
  run = launch('--keep', fail={'install': [9, 1, 'ERROR: no']})
  assert run.code == 1
  assert run.left == 'READY'
  assert '== mrt is kept and costs money. Delete it: gcloud' in run.out


def test_what_passes_is_tried_again(launch):
  """No capacity, a machine that still boots, a network that is down."""
  run = launch(
    fail={
      'create': [2, 1, CAPACITY],
      'connect': [2, 255, 'ERROR: Connection refused'],
      'describe': [1, 1, 'ERROR: network is unreachable'],
      'delete': [1, 1, 'ERROR: (gcloud) UNAVAILABLE'],
    }
  )
  assert run.code == 0, run.err
  assert run.steps.count('create') == 3
  assert f'== no TPU: {CAPACITY}: restart 2 of 20 in 0 s' in run.out
  assert not run.left


def test_a_state_that_cannot_be_had(launch):
  run = launch(fail={'describe': [99, 1, PERMISSION]})
  assert run.code == 1
  assert f'the state of mrt is unknown: {PERMISSION}' in run.error
  assert run.steps == ['describe']


def test_a_delete_that_fails_is_told(launch):
  run = launch(
    fail={
      'connect': [9, 1, 'ERROR: no'],
      'delete': [99, 1, 'ERROR: (gcloud) UNAVAILABLE'],
    }
  )
  assert run.code == 1
  line = run.err.splitlines()[-1]
  assert 'mrt may still be there and cost money' in line
  assert line.endswith('delete mrt --zone=us-west4-a --quiet')
  assert run.steps[-4:] == ['delete'] * 4


def test_the_exit_code_of_the_run(launch, checkout, tmp_path):
  """An error of the run is no reason to start it again.

  It is run as it was committed.
  """
  (checkout / 'run.sh').write_text('exit 9')
  (tmp_path / 'bucket').mkdir()
  for i in range(2):
    (tmp_path / 'bucket' / f'code.{i}').write_text('3')
  run = launch('--ref=HEAD')
  assert run.code == 3
  assert run.error == 'tpu_vm.py: the run ended with exit code 3'
  assert run.steps.count('start') == 1
  assert not run.left


def test_a_host_that_crashes_ends_in_a_restart(launch, tmp_path):
  """The others end in their own ways; three times in a row are no accident."""
  (tmp_path / 'bucket').mkdir()
  (tmp_path / 'bucket' / 'code.0').write_text('1')
  (tmp_path / 'bucket' / 'code.1').write_text('134')
  run = launch('--noreports')
  assert run.code == 134
  assert '3 times in a row, soon after its start' in run.error
  assert run.steps.count('start') == 3
  assert run.steps.count('create') == 1
  assert not run.left


def test_ran_on_one_host_only(launch):
  run = launch(variables={'INDEX': '0', 'COUNT': '1', 'HOLD': '1'})
  assert run.code == 1
  assert "ran on one host only: 'process 0 of 1', but mrt has 2" in run.error
  assert not run.left


def test_a_worker_that_does_not_report(launch):
  run = launch('--report_seconds=0.5', absent=[1], variables={'HOLD': '1'})
  assert run.code == 1
  assert '1 of 2 workers said which process they are' in run.error
  assert 'missing: [1]' in run.error
  assert not run.left


def wait_for_follow(run, times):
  """Waits until worker 0's output has been followed so many times."""
  end = time.monotonic() + 60
  while run.steps.count('follow') < times and time.monotonic() < end:
    time.sleep(0.1)


@pytest.mark.parametrize('keep', [False, True])
def test_a_signal(keep, launch):
  """The run saves and the TPU goes; with --keep both stay, to be taken up."""
  run = launch(
    *(['--keep'] if keep else []), wait=False, variables={'HOLD': '4'}
  )
  wait_for_follow(run, 1)
  run.process.send_signal(signal.SIGTERM)
  run.finish()
  assert run.code == 143
  assert 'stopped by SIGTERM' in run.error
  if not keep:
    assert run.steps[-2:] == ['finish', 'delete']
    assert not run.left
    log = run.cloud / 'worker1' / 'meta_rl_launch' / 'run' / 'log'
    assert 'saving' in log.read_text()
    return
  assert run.left == 'READY'
  again = launch('--keep', wait=False)
  wait_for_follow(again, 2)
  (run.bucket / 'go').touch()
  again.finish()
  assert again.code == 0, again.err
  assert '== a run is going on there: following it' in again.out
  assert again.steps.count('start') == again.steps.count('scp') == 1
  assert 'step 6' in again.out
  assert again.left == 'READY'


def test_another_tpu_of_that_name_is_left_alone(launch, tmp_path):
  there = {'type': 'v5litepod-8', 'queued': False, 'state': 'READY'}
  run = launch(tpu=there | {'states': []})
  assert run.code == 1
  assert 'mrt is there and is a v5litepod-8; v5litepod-16 is asked' in run.error
  assert run.steps == ['describe']


def test_files_that_are_not_in_a_commit_come_along(launch, checkout):
  (checkout / 'run.sh').write_text('exit 9')
  (checkout / 'new.sh').write_text('. ./run.sh')
  assert launch('--noreports', command=['bash', 'new.sh']).code == 9


def test_a_commit_that_is_none(launch):
  run = launch('--ref=nosuch')
  assert run.code == 1
  assert 'packing nosuch of mrt failed' in run.error


def test_secrets_travel_in_a_file_of_their_own(launch, monkeypatch):
  """The run has it; no command line, log, message or left file does."""
  monkeypatch.setenv('MY_TOKEN', SECRET)
  script = (
    '[ "$MY_TOKEN" = "$(printf %s "$1")" ] && echo same; echo "$MY_TOKEN"'
  )
  # The run compares it with a copy that it finds in another way.
  run = launch(
    *('--env=MY_TOKEN', '--keep', '--noreports'),
    command=['bash', '-c', f'set -- "$(cat "$STANDIN/../copy")"; {script}'],
    wait=False,
  )
  (run.cloud.parent / 'copy').write_text(SECRET)
  run.finish()
  assert run.code == 0, run.err
  assert 'same' in run.out.splitlines()
  assert '<MY_TOKEN>' in run.out.splitlines()  # what it printed is covered
  assert SECRET not in run.out + run.err
  scp = next(call for call in run.calls if call[4] == 'scp')
  assert scp[7].endswith('/env')
  part = SECRET[:6]
  assert part not in json.dumps(run.calls)
  found = [
    path
    for path in run.cloud.rglob('*')
    if path.is_file() and part in path.read_text(errors='replace')
  ]
  # Its own output, where it printed it.
  assert {path.name for path in found} <= {'log'}


def test_the_file_of_secrets_is_its_owners_alone(launch, monkeypatch):
  monkeypatch.setenv('MY_TOKEN', SECRET)
  run = launch('--env=MY_TOKEN', '--keep', fail={'install': [9, 1, 'no']})
  assert run.code == 1
  for i in range(2):
    file = run.cloud / f'worker{i}' / 'meta_rl_launch' / 'env'
    assert file.stat().st_mode & 0o777 == 0o600
  assert not list((run.cloud / 'cache').rglob('env'))


def test_the_key_goes_into_the_agent(launch):
  """After the first connection, at which gcloud makes it."""
  names = [
    command[0] if command[0] != 'gcloud' else command[4]
    for command in printed(
      launch('--dry-run', variables={'SSH_AUTH_SOCK': '/x'})
    )
  ]
  assert names.index('ssh') + 1 == names.index('ssh-add')


MISTAKES = [
  (['--accelerator=v5e-17'], "'v5e-17' is not a slice of v5e: v5e-1 (1x1)"),
  (['--accelerator=h100'], "'h100' is not a TPU slice: give a generation"),
  (['--accelerator=tpu7x-16'], 'tpu7x is to be had on GKE only'),
  (['--name=Mrt_1'], "--name='Mrt_1': a name is 1 to 40 lower-case"),
  (['--name='], '--name is missing: give --name=mrt'),
  (['--zone=here'], "--zone='here': a zone is like us-west4-a"),
  (['--env=A=b'], '--env=A… is given; give a name alone'),
  (['--env=NO_SUCH_ONE'], 'NO_SUCH_ONE is not set here. Run: export NO_SUCH'),
  (['--max_restarts=-1'], '--max_restarts'),
  (['--nosuch'], "Unknown command line flag 'nosuch'"),
  (['word'], "'word' is given; flags are --name=value"),
  (['--code=launch'], '--code=launch: it is not the top of a git checkout'),
]


COMMANDS = [
  (['env', 'HF_TOKEN=abc', 'x'], 'HF_TOKEN=… is part of the command'),
  (['x', f'--key={SECRET}'], 'the value of MY_TOKEN is part of the command'),
  (['x', '--workdir=runs/x'], '--workdir=runs/x lies on the TPU VM'),
  (['x', '--workdir', '~/x'], '--workdir=~/x lies on the TPU VM'),
  ([], "no command is given: put it behind '--'"),
]
# All in one process: most of the time of one is its start.
REFUSALS = """
import json, sys
sys.path.insert(0, 'launch')
import tpu_vm
tpu_vm.define_flags()
for argv in json.loads(sys.argv[1]):
  tpu_vm.FLAGS.unparse_flags()
  for name in tpu_vm.FLAGS:
    tpu_vm.FLAGS[name].unparse()
  try:
    tpu_vm.main(tpu_vm.parse_flags(['tpu_vm.py', *argv]))
  except SystemExit as stop:
    print(json.dumps(stop.code))
"""


def test_mistakes_get_one_line(tmp_path):
  """What was given, what is allowed; nothing is called."""
  own = ['--name=mrt', '--zone=us-west4-a', '--accelerator=v5e-16']
  ways = [[*own, *flags, '--', 'x'] for flags, _ in MISTAKES]
  ways += [[*own, '--env=MY_TOKEN', '--', *words] for words, _ in COMMANDS]
  environment = standin_gcloud.install(tmp_path / 'cloud')
  result = subprocess.run(
    [sys.executable, '-c', REFUSALS, json.dumps(ways)],
    cwd=ROOT,
    env=os.environ | environment | {'MY_TOKEN': SECRET},
    capture_output=True,
    text=True,
    check=True,
  )
  lines = [json.loads(line) for line in result.stdout.splitlines()]
  assert len(lines) == len(ways)
  for line, (_, text) in zip(lines, MISTAKES + COMMANDS):
    assert line.startswith('tpu_vm.py: ')
    assert text in line
    assert '\n' not in line
    assert SECRET not in line
    assert 'abc' not in line
  assert not standin_gcloud.calls(tmp_path / 'cloud')


def test_no_gcloud(launch, tmp_path):
  (tmp_path / 'empty').mkdir()
  run = launch(variables={'PATH': str(tmp_path / 'empty')})
  assert run.code == 1
  assert 'gcloud is not on PATH: install it' in run.error


def test_two_launchers_of_one_name(launch, tmp_path):
  cache = tmp_path / 'cloud' / 'cache' / 'meta_rl_launch' / 'mrt'
  cache.mkdir(parents=True)
  with open(cache / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    run = launch()
  assert run.code == 1
  assert 'another launcher is at work on --name=mrt' in run.error
  assert not run.calls
