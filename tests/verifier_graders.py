"""Verifiers that do to their worker what hostile answers do (test_pool.py)."""

import os
import re
import signal
import subprocess
import sys
import time

LEAKED = []


def hostile(answer, record):
  """Grades 'good' answers and does whatever else the answer says."""
  if 'log' in record:  # which rows were begun, in which order
    with open(record['log'], 'a') as file:
      file.write(f'{record["id"]} ')
  if answer == 'sleep':
    time.sleep(1e6)
  if answer == 'hang with the lock held':
    re.fullmatch('(a|a)*b', 'a' * 60)
  if answer == 'stop':
    os.kill(os.getpid(), signal.SIGSTOP)
  if answer == 'exit':
    os._exit(0)
  if answer == 'sys.exit':
    sys.exit()
  if answer == 'segfault':
    os.kill(os.getpid(), signal.SIGSEGV)
  if answer == 'memory':
    bytearray(1 << 33)
  if answer == 'leak':
    LEAKED.append(bytearray(30 << 20))
    return 1.0
  if answer == 'many pages':
    record['keep'] = [bytes(1 << 16) for _ in range(1 << 20)]
  if answer == 'recursion':
    hostile(answer, record)
  if answer == 'raise':
    raise RuntimeError('of two\nlines and a lone \ud800')
  if answer == 'half':
    return 0.5
  if answer == 'print':
    print('noise')
    os.write(1, b'noise')
  if answer == 'child':
    with open(record['pids'], 'w') as file:
      file.write(str(subprocess.Popen(['sleep', '1000']).pid))
    time.sleep(1e6)
  return float(answer == record['answer'])


def pid(answer, record):
  """Writes where it runs."""
  with open(record['pids'], 'a') as file:
    file.write(f'{os.getpid()} ')
  return hostile(answer, record)


def _raise():
  raise RuntimeError('not here')


class Unreadable:
  """Something that is pickled and cannot be read again."""

  def __reduce__(self):
    return _raise, ()
