r"""Finds the answer in what a model wrote: the part to grade, \boxed, a line.

Everything here is linear in the text, since the text may be of any length and
is written by a model that is rewarded for what is found.
"""

import re

# TeX allows spaces in between, and \fbox is a box too.
_BOXED = re.compile(r'\\(?:boxed|fbox)\s*\{')
_BRACES = re.compile(r'\\.|[{}]', re.DOTALL)
# 'answer: 42', '**Final answer** is 42', '#### 42'; what follows is the answer.
_ANSWER = re.compile(
  r'(?:\banswer\b[*_ \t]{0,8}(?:\bis\b|[:=])[*_:= \t]{0,8}|####)',
  re.IGNORECASE | re.ASCII,
)


def after(text: str, stop: str) -> str | None:
  r"""Returns what comes after the stop string, None if it is not there.

  Only this is graded: a \boxed inside the thought is no answer, and a text that
  was cut while thinking has none. The first stop string decides, as it does
  when the text is generated.

  Args:
    text: all that was written.
    stop: what ends the thought, such as '</think>'; '' grades the whole text.
  """
  if not stop:
    return text
  _, found, rest = text.partition(stop)
  return rest if found else None


def extract_boxed(text: str) -> str | None:
  r"""Returns what the last `\boxed{` or `\fbox{` of a text holds, or None.

  Braces are counted, so `\boxed{\frac{1}{\sqrt{2}}}` gives
  `\frac{1}{\sqrt{2}}`; an escaped brace (`\{`) is a character, not a group.
  The last box decides even when it is unclosed: a text that was cut in its
  final answer has none, and falling back to an earlier box would credit a
  guess that the author had moved on from.

  Args:
    text: any text.

  Returns:
    The content as it stands, '' for `\boxed{}`; None without a box or if the
    last one is not closed.

  Example:
    >>> from meta_rl import answers
    >>> answers.extract_boxed(r'\boxed{1}, no: \boxed{\frac{1}{2}}')
    '\\frac{1}{2}'
  """
  start = -1
  for match in _BOXED.finditer(text):
    start = match.end()
  if start < 0:
    return None
  depth = 1
  for match in _BRACES.finditer(text, start):
    depth += (match[0] == '{') - (match[0] == '}')
    if depth == 0:
      return text[start : match.start()]
  return None


def answer_line(text: str) -> str | None:
  """Returns what the last line that names its answer says, or None.

  'The answer is 42.' gives '42.', 'Answer: 7' and '#### 7' give '7'.

  Args:
    text: any text. A line ends at a line feed.
  """
  line_start = len(text) + 1
  for end in reversed([match.end() for match in _ANSWER.finditer(text)]):
    if end >= line_start:
      continue  # of a line whose last one was looked at
    line_start = text.rfind('\n', 0, end) + 1
    line_end = text.find('\n', end)
    answer = text[end : line_end if line_end >= 0 else None].strip()
    if answer:
      return answer
  return None


def final_answer(text: str) -> str | None:
  r"""Returns the answer of a text by the first of these that it has.

  The last `\boxed{}` (None if it is not closed), the last line that names its
  answer, the whole text.

  Args:
    text: what comes after the thought.
  """
  if _BOXED.search(text):
    return extract_boxed(text)
  line = answer_line(text)
  return text.strip() if line is None else line
