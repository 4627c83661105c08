"""Is a Countdown trace a true search? A parser of its episodes (host).

It shares nothing with the generator of the warm-start traces but the words, so
that the one can be tested with the other; and it says of a policy's own traces
which of their claims are true.
"""

import dataclasses
from collections.abc import Sequence

from meta_rl import checks, tokenizer

MODES = ('restart', 'backtrack')

_OPERATIONS = {
  tokenizer.PLUS: lambda a, b: a + b,
  tokenizer.MINUS: lambda a, b: a - b,
  tokenizer.TIMES: lambda a, b: a * b,
  tokenizer.DIVIDE: lambda a, b: a // b if b and a % b == 0 else None,
}
Steps = list[list[int]]


@dataclasses.dataclass(frozen=True)
class EpisodeCheck:
  """What is true of one episode.

  Attributes:
    form: its steps, with those kept, are one expression over all given numbers
      that the canonical grammar allows, behind them a verdict and a delimiter.
    values: each value that it writes is that of its operator and operands.
    reuse: the steps that it says it keeps are there in the attempt before, and
      it changes something behind them; True where nothing is to be kept.
    verdict: it says yes if and only if the expression reaches the target.
  """

  form: bool
  values: bool
  reuse: bool
  verdict: bool

  @property
  def well_formed(self) -> bool:
    """Whether it is an episode of the grammar, whatever it claims."""
    return self.form and self.reuse

  @property
  def valid(self) -> bool:
    """Whether all of it is true."""
    return self.form and self.values and self.reuse and self.verdict


def check_trace(
  tokens: Sequence[int],
  *,
  mode: str = 'restart',
  ops: str = '+-*/',
  max_value: int = tokenizer.MAX_INTEGER,
) -> list[EpisodeCheck]:
  """Returns a check of every episode of a trace.

  Args:
    tokens: the prompt, `<bos> numbers = target <think>`, and the response; what
      follows the answer marker or EOS is not looked at, nor is padding at
      either end.
    mode: 'restart' (every episode a whole attempt) or 'backtrack'.
    ops: allowed operators.
    max_value: largest value allowed.

  Returns:
    One `EpisodeCheck` an episode; what comes behind the last delimiter is an
    episode too, of no form.

  Raises:
    ValueError: an unknown mode, or tokens that do not begin with a prompt.
  """
  checks.check_choice('mode', mode, MODES)
  numbers, target, thought = _split(_unpadded(tokens))
  allowed = {tokenizer.OPERATORS[op] for op in ops}
  found, before = [], None  # no attempt to go back to
  for words in _episodes(thought):
    claim, words = words[-2:], words[:-2]
    kept, reuse, words = _kept(words, before, len(numbers) - 2)
    steps, rest = _steps(words)
    known = kept + steps
    said, right = _values(known, numbers, allowed, max_value)
    written = said is not None and all(said[len(kept) :])
    form = said is not None and not rest
    form &= len(claim) == 2 and claim[1] == tokenizer.DELIMITER
    form &= claim[:1] in ([tokenizer.YES], [tokenizer.NO])
    found.append(
      EpisodeCheck(
        form=form,
        values=written,
        reuse=reuse and known != before,
        verdict=form and (claim[0] == tokenizer.YES) == (right == target),
      )
    )
    before = known if mode == 'backtrack' else None
  return found


def _unpadded(tokens) -> list[int]:
  """Returns the tokens without padding at either end."""
  tokens = [int(t) for t in tokens]
  real = [i for i, t in enumerate(tokens) if t != tokenizer.PAD]
  return tokens[real[0] : real[-1] + 1] if real else []


def _split(tokens):
  """Returns the numbers, the target and the thinking tokens of a trace."""
  head = tokens.index(tokenizer.THINK) if tokenizer.THINK in tokens else -1
  prompt = tokens[1 : head - 2]
  if (
    head < 4
    or tokens[0] != tokenizer.BOS
    or tokens[head - 2] != tokenizer.EQUALS
    or not all(_is_integer(t) for t in [*prompt, tokens[head - 1]])
  ):
    raise ValueError(
      'a trace must begin with its prompt, `<bos> numbers = target <think>`; '
      f'got {tokenizer.decode(tokens[:8])!r}'
    )
  thought = tokens[head + 1 :]
  for end in (tokenizer.END_THINK, tokenizer.EOS):
    if end in thought:
      thought = thought[: thought.index(end)]
  return [_integer(t) for t in prompt], _integer(tokens[head - 1]), thought


def _episodes(thought) -> list[list[int]]:
  """Returns the episodes, each with its delimiter if it has one."""
  found, start = [], 0
  for place, token in enumerate(thought):
    if token == tokenizer.DELIMITER:
      found.append(thought[start : place + 1])
      start = place + 1
  return found + ([thought[start:]] if start < len(thought) else [])


def _kept(words, before: Steps | None, most: int):
  """Returns the steps kept, whether they could be, and the other words."""
  if before is None:
    return [], True, words
  if len(words) < 2 or words[0] != tokenizer.BACKTRACK:
    return [], False, words
  steps = _integer(words[1])
  if not 0 <= steps <= min(most, len(before)):
    return [], False, words[2:]
  return before[:steps], True, words[2:]


def _steps(words) -> tuple[Steps, list[int]]:
  """Returns the steps `numbers operator value`, and words that are of none."""
  found, step = [], []
  for word in words:
    step.append(word)
    if len(step) > 1 and step[-2] in _OPERATIONS:
      found.append(step)
      step = []
  return found, step


def _values(steps: Steps, numbers, allowed, max_value):
  """Returns whether each step's value is right, and the value of it all.

  None for the former if it is no canonical expression over all the numbers.
  Steps are judged by the operands as written; the second value is exact.
  """
  left, exact, written, right = list(numbers), [], [], []
  for *read, op, value in steps:
    for number in map(_integer, read):
      if number not in left:
        return None, None
      left.remove(number)
      exact.append(number)
      written.append(number)
    if op not in allowed or len(exact) < 2 or not _is_integer(value):
      return None, None
    b, a = exact.pop(), exact.pop()
    true = _OPERATIONS[op](a, b)
    if a < b or true is None or not 0 <= true <= max_value:
      return None, None
    exact.append(true)
    b, a = written.pop(), written.pop()
    right.append(_OPERATIONS[op](a, b) == _integer(value))
    written.append(_integer(value))
  if left or len(exact) != 1:
    return None, None
  return right, exact[0]


def _is_integer(token: int) -> bool:
  first = tokenizer.FIRST_INTEGER
  return first <= token <= first + tokenizer.MAX_INTEGER


def _integer(token: int) -> int:
  """Returns the integer of a token; -1 for a word that is none."""
  return token - tokenizer.FIRST_INTEGER if _is_integer(token) else -1
