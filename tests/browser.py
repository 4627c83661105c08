"""A headless Chromium for tests, driven over the DevTools protocol.

The two pipes of `--remote-debugging-pipe` carry it, JSON between null bytes: no
port, no WebSocket, nothing to install but the browser.
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time

BINARIES = ('chromium', 'chromium-browser', 'google-chrome')


def find():
  """Returns the path of a Chromium, None where none is installed."""
  return next(filter(None, map(shutil.which, BINARIES)), None)


class Page:
  """One tab, closed with its browser at the end of a `with` block.

  Attributes:
    errors: what went to the console as an error or warning, thrown exceptions
      and what the browser itself logged.
    requests: URL of everything that was asked for.
  """

  def __init__(self, binary, profile, timeout=60):
    self.errors, self.requests = [], []
    self._timeout, self._number, self._buffer = timeout, 0, b''
    self._events, self._session = [], None
    read_end, self._out = os.pipe()
    self._in, write_end = os.pipe()
    # The browser reads descriptor 3 and writes 4: neither end may be there
    # already. dash knows descriptors of one digit alone.
    ends = [fcntl.fcntl(e, fcntl.F_DUPFD, 10) for e in (read_end, write_end)]
    os.close(read_end)
    os.close(write_end)
    self._process = subprocess.Popen(
      [
        'bash',
        '-c',
        f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}',
        'bash',
        binary,
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-dev-shm-usage',
        '--no-first-run',
        '--hide-scrollbars',
        '--remote-debugging-pipe',
        f'--user-data-dir={profile}',
        'about:blank',
      ],
      pass_fds=ends,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    for end in ends:
      os.close(end)

  def __enter__(self):
    try:
      target = self.send('Target.createTarget', url='about:blank')
      self._session = self.send(
        'Target.attachToTarget', targetId=target['targetId'], flatten=True
      )['sessionId']
      for domain in ('Page', 'Runtime', 'Log', 'Network'):
        self.send(f'{domain}.enable')
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *_):
    os.close(self._out)
    os.close(self._in)
    self._process.terminate()
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def send(self, method, **params):
    """Returns the result of one call of the protocol."""
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._out, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._receive()
      if answer.get('id') == self._number:
        assert 'error' not in answer, f'{method}: {answer["error"]}'
        return answer['result']
      self._note(answer)

  def open(self, url, *, width=1280, height=2400, dark=False, phone=False):
    """Loads a page, of one size and theme, and waits until it is there."""
    self.send(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=phone,
    )
    theme = {
      'name': 'prefers-color-scheme',
      'value': 'dark' if dark else 'light',
    }
    self.send('Emulation.setEmulatedMedia', features=[theme])
    self._events.clear()
    self.send('Page.navigate', url=url)
    while 'Page.loadEventFired' not in self._events:
      self._note(self._receive())

  def run(self, code):
    """Returns the value of a JavaScript expression, as JSON carries it."""
    answer = self.send(
      'Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True
    )
    assert 'exceptionDetails' not in answer, answer['exceptionDetails']
    return answer['result'].get('value')

  def press(self, key):
    """Presses a key, such as 'ArrowRight', where the focus is."""
    for kind in ('keyDown', 'keyUp'):
      self.send('Input.dispatchKeyEvent', type=kind, key=key, code=key)

  def _note(self, event):
    method, params = event.get('method', ''), event.get('params', {})
    self._events.append(method)
    if method == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'])
    elif method == 'Runtime.exceptionThrown':
      self.errors.append(params['exceptionDetails'])
    elif method == 'Log.entryAdded':
      self.errors.append(params['entry'])
    elif method == 'Runtime.consoleAPICalled':
      if params['type'] in ('error', 'warning', 'assert'):
        self.errors.append(params)

  def _receive(self):
    """Returns the next message of the browser."""
    end = time.monotonic() + self._timeout
    while b'\0' not in self._buffer:
      ready, _, _ = select.select([self._in], [], [], end - time.monotonic())
      assert ready, f'The browser said nothing for {self._timeout} s.'
      part = os.read(self._in, 1 << 16)
      assert part, 'The browser ended.'
      self._buffer += part
    message, _, self._buffer = self._buffer.partition(b'\0')
    return json.loads(message)
