import os
import signal
import subprocess
import sys
import threading

import pytest

from meta_rl import signals


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_nothing_else(number, capfd):
  before = signal.getsignal(number)
  with signals.GracefulExit() as stop:
    assert not stop
    os.kill(os.getpid(), number)
    assert stop
    assert stop.signal_name == signal.Signals(number).name
  assert signal.getsignal(number) is before
  assert stop.signal_name in capfd.readouterr().err


def test_old_handlers_come_back_after_an_error():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(KeyError):
    with signals.GracefulExit():
      raise KeyError
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_leaves_at_once(root):
  code = (
    'import os, signal\n'
    'from meta_rl.signals import GracefulExit\n'
    'with GracefulExit() as stop:\n'
    '  os.kill(os.getpid(), signal.SIGINT)\n'
    '  assert stop\n'
    '  os.kill(os.getpid(), signal.SIGINT)\n'
    '  print("still here")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=root, capture_output=True, timeout=60
  )
  # 128 + SIGINT (2), the shell's convention.
  assert (done.returncode, done.stdout) == (130, b'')


def test_another_thread_gets_a_flag_without_handlers():
  before = signal.getsignal(signal.SIGTERM)
  seen = []

  def work():
    with signals.GracefulExit() as stop:
      seen.append(signal.getsignal(signal.SIGTERM) is before)
      stop.request('preemption notice')
      seen.append(bool(stop))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [True, True]


def test_the_message_says_what_to_do():
  stop = signals.GracefulExit()
  stop.request('SIGTERM')
  text = stop.message(7)
  assert 'SIGTERM after step 7' in text
  assert 'again' in text
  assert str(signals.EXIT_INTERRUPTED) in text


def test_exit_codes_differ():
  codes = [v for k, v in vars(signals).items() if k.startswith('EXIT_')]
  assert sorted(codes) == [0, 1, 3, 75]
