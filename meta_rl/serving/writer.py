"""Tokens of one response as text, while they come (host).

The thought and the answer are kept apart, and a stop string ends the answer.
"""

from collections.abc import Sequence

from meta_rl.serving import ticks, voices
from meta_rl.serving.tickets import Piece


class _Decoder:
  """Tokens to text, as they come: what is shown does not change any more."""

  def __init__(self, decode):
    self._decode, self._ids = decode, []
    self._before = self._shown = 0

  def text(self, new: Sequence[int], *, last: bool = False) -> str:
    """Returns the text that the new tokens add; '' for half a character."""
    self._ids += new
    # Of the tokens before, the last few are enough for how texts join.
    old = self._decode(self._ids[self._before : self._shown])
    text = self._decode(self._ids[self._before :])
    whole = text.startswith(old) and not text.endswith('\ufffd')
    if not whole and not last:
      return ''
    self._before, self._shown = self._shown, len(self._ids)
    return text[len(old) :]


class Writer:
  """The text of one response, piece by piece.

  Attributes:
    ended: a stop string came: what comes behind it is dropped.
  """

  def __init__(self, voice: voices.Voice, stop: Sequence[str], *, joined: bool):
    """Begins a response.

    Args:
      voice: whose.
      stop: strings that end an answer; in a thought they end nothing.
      joined: all of a response is one text (of a completion), and a marker
        between thought and answer is part of it.
    """
    self._voice, self._stop, self._joined = voice, tuple(stop), joined
    self._answering = voice.marks.think_end_id is None
    self._whole = _Decoder(voice.decode)
    self._parts = {True: self._whole, False: self._whole}
    if not joined:
      self._parts[False] = _Decoder(voice.decode)
    self._held = ''
    self.ended = False

  def write(self, piece: Piece) -> tuple[str, str]:
    """Returns what a piece adds to the thought and to the answer.

    The thought of a joined text is '', and its answer has everything.
    """
    said = {False: '', True: ''}
    for answering, ids in self._runs(piece):
      self._say(said, answering, self._parts[answering].text(ids))
    if piece.finish:
      for answering, decoder in self._parts.items():
        self._say(said, answering, decoder.text([], last=True))
      if not self.ended:
        said[True], self._held = said[True] + self._held, ''
    if self._joined:
      return '', said[True]
    return said[False], said[True]

  def _runs(self, piece):
    """Yields (answering, ids) of tokens that belong together."""
    marks = self._voice.marks
    part, ids = self._answering, []
    for token, kind in zip(piece.tokens, piece.kinds):
      closes = token == marks.think_end_id and not self._answering
      closes &= kind in (ticks.MARKER, ticks.FORCED)
      begins = kind == ticks.ANSWER and token not in marks.end_ids
      here = self._answering or begins
      if here != part:
        if ids:
          yield part, ids
        part, ids = here, []
      self._answering = here
      ends = kind == ticks.ANSWER and token in marks.end_ids
      if not ends and (self._joined or not closes):
        ids.append(token)
      if closes:
        if ids:
          yield part, ids
        part, ids, self._answering = True, [], True
    if ids:
      yield part, ids

  def _say(self, said, answering, text):
    """Adds a text to what is said, up to a stop string in the answer."""
    if self.ended or not text:
      return
    if not answering:
      said[self._joined] += text
      return
    text = self._held + text
    places = [p for p in map(text.find, self._stop) if p >= 0]
    if places:
      said[True] += text[: min(places)]
      self._held, self.ended = '', True
      return
    keep = _held_back(text, self._stop)
    said[True] += text[: len(text) - keep]
    self._held = text[len(text) - keep :]


def _held_back(text: str, stop: Sequence[str]) -> int:
  """Returns how many characters at the end may begin a stop string."""
  sizes = (
    size
    for word in stop
    for size in range(min(len(word) - 1, len(text)), 0, -1)
    if text.endswith(word[:size])
  )
  return max(sizes, default=0)
