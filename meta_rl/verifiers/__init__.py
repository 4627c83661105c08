"""Verifiers: is the answer that a model wrote the right one? (host)

    with pool.Pool('math', timeout_s=5, stop='</think>') as verifiers:
      grades = verifiers.grade(texts, records)
    grades.scores()    # [1.0, 0.0, ...]

A verifier is one function, `grade(answer, record) -> 0.0 or 1.0`, where record
holds the right answer under 'answer'. It runs in a worker process (pool.py),
because what a model writes may make it hang, crash or eat all memory. A new one
is a module with such a function and a row in VERIFIERS; anybody's own is named
by its path, 'package.module:function'. The module may also have a function
`vote(answer)`, what an answer votes for under maj@k: see `vote_of`; and one
`check_gold(record)`, which refuses a right answer that none could match: see
`gold_check_of`.

This package is what a worker imports: nothing heavy may be imported here.
"""

import difflib
import importlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

Record = Mapping[str, Any]
Grade = Callable[[str, Record], float]

VERIFIERS = {
  'math': 'meta_rl.verifiers.math:grade',
  'integer': 'meta_rl.verifiers.integers:grade',
  'text': 'meta_rl.verifiers.exact:grade',
  'expression': 'meta_rl.verifiers.expression:grade',
  'reasoning_gym': 'meta_rl.verifiers.reasoning_gym:grade',
}


class VerifierError(ValueError):
  """A verifier that cannot be used; the message is one line."""


class TooLong(ValueError):
  """An answer that is too long for its verifier to look at."""


def path_of(verifier: str) -> str:
  """Returns 'module:function' of a verifier.

  Args:
    verifier: a key of VERIFIERS, or such a path itself.

  Raises:
    VerifierError: neither.
  """
  if isinstance(verifier, str):
    if verifier in VERIFIERS:
      return VERIFIERS[verifier]
    parts = verifier.replace(':', '.').split('.')
    if verifier.count(':') == 1 and all(part.isidentifier() for part in parts):
      return verifier
  near = difflib.get_close_matches(str(verifier), VERIFIERS, n=1)
  hint = f'; did you mean {near[0]}?' if near else ''
  raise VerifierError(
    f'verifier {verifier!r} must be one of {sorted(VERIFIERS)} or the path of '
    f'a function, package.module:function{hint}'
  )


def resolve(verifier: str) -> Grade:
  """Returns the function of a verifier, its module imported.

  A module that needs an extra has a function `check_installed`, which is called
  here: a missing package is said before the first answer comes.

  Args:
    verifier: as in `path_of`.

  Raises:
    VerifierError: no such module or function, or a package that is missing.
  """
  path = path_of(verifier)
  module_name, _, name = path.partition(':')
  try:
    module = importlib.import_module(module_name)
  except Exception as error:  # a user's module may do anything
    line = ' '.join(str(error).split())
    raise VerifierError(
      f'verifier {verifier!r}: module {module_name!r} cannot be imported '
      f'({type(error).__name__}: {line})'
    ) from error
  if hasattr(module, 'check_installed'):
    module.check_installed()
  found = module
  for part in name.split('.'):
    found = getattr(found, part, None)
  if not callable(found):
    raise VerifierError(
      f'verifier {verifier!r}: {module_name!r} has no function {name!r}'
    )
  return found


def vote_of(verifier: str) -> Callable[[str], Hashable | None]:
  """Returns `vote(answer)`: what an answer votes for, of its verifier's module.

  It is the final answer alone, in a normal form: equal for answers that are
  one, whatever is written around them, and None where there is none. Of a
  module without such a function it is `extract.final_answer`, its white space
  made alike.

  Args:
    verifier: as in `path_of`.

  Raises:
    VerifierError: as `resolve`.
  """
  return _beside(verifier, 'vote', _vote)


def gold_check_of(verifier: str) -> Callable[[Record], None]:
  """Returns `check_gold(record)` of a verifier's module.

  It raises ValueError, in one line, for a right answer that the verifier cannot
  use: each answer to such a problem would be an error, or wrong. It costs next
  to nothing. Of a module without such a function it takes all.

  Args:
    verifier: as in `path_of`.

  Raises:
    VerifierError: as `resolve`.
  """
  return _beside(verifier, 'check_gold', lambda record: None)


def _beside(verifier, name, default):
  """Returns a function of a verifier's module, or the default."""
  resolve(verifier)
  module = importlib.import_module(path_of(verifier).partition(':')[0])
  return getattr(module, name, default)


def _vote(answer: str) -> str | None:
  from meta_rl.verifiers import extract  # it imports this package

  found = extract.final_answer(answer)
  return ' '.join(found.split()) or None if found else None
