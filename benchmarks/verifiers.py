"""How many answers a second the verifiers grade, and what a failure costs.

    python benchmarks/verifiers.py [--workers=2] [--rows=20000] [--math=2000]
      [--json=verifiers.json]

Prints, for a pool of worker processes:
  - seconds to start it;
  - integer answers a second, as boxed text of a few hundred characters, and the
    share of the graders themselves, called in this process;
  - mathematical answers a second: equal texts, integers, and fractions that
    sympy has to compare (of 200 different ones, as a group's answers share
    theirs);
  - seconds of a batch of integers without and with one row that hangs, and how
    many rows it costs.
"""

import json
import random
import time

from absl import app, flags

from meta_rl.verifiers import VerifierError, integers, pool

FLAGS = flags.FLAGS
TIMEOUT_S = 2.0


def started(verifier: str, **options) -> tuple[pool.Pool, float]:
  """Returns a pool that is ready, and the seconds that it took."""
  began = time.perf_counter()
  made = pool.Pool(verifier, workers=FLAGS.workers, **options)
  return made, time.perf_counter() - began


def hang(answer: str, record) -> float:
  """Grades integers, and never comes back from one answer."""
  while answer == 'hang':
    pass
  return integers.grade(answer, record)


def integer_rows(count: int) -> tuple[list[str], list[dict[str, str]]]:
  """Returns answers with a page of reasoning, every other one right."""
  reasons = 'Adding the terms gives the sum, so we conclude. ' * 8
  answers = [rf'{reasons}The answer is \boxed{{{i:,}}}.' for i in range(count)]
  return answers, [{'answer': str(i - i % 2)} for i in range(count)]


def math_rows(count: int) -> tuple[list[str], list[dict[str, str]]]:
  """Returns equal texts, integers, and fractions for sympy, by turns."""
  rng = random.Random(0)
  answers, records = [], []
  for i in range(count):
    a, b = rng.randrange(1, 15), rng.randrange(2, 16)
    kinds = [
      (rf'\sqrt{{2}}+{i}', rf'\sqrt{{2}} + {i}'),
      (str(i), f'{i:,}'),
      (rf'\frac{{{a}}}{{{b}}}', rf'\frac{{{3 * a}}}{{{3 * b}}}'),
    ]
    gold, answer = kinds[i % 3]
    answers.append(rf'\boxed{{{answer}}}')
    records.append({'answer': gold})
  return answers, records


def measure() -> dict[str, float]:
  """Returns all figures by name."""
  figures = {}
  answers, records = integer_rows(FLAGS.rows)
  began = time.perf_counter()
  alone = [integers.grade(a, r) for a, r in zip(answers, records)]
  seconds = time.perf_counter() - began
  figures['integer_in_process_per_s'] = FLAGS.rows / seconds
  made, figures['integer_start_s'] = started('integer')
  with made:
    made.grade(answers[:200], records[:200])
    grades = made.grade(answers, records)
    assert grades.scores() == alone
    figures['integer_per_s'] = FLAGS.rows / grades.seconds
  try:
    made, figures['math_start_s'] = started('math', timeout_s=20)
  except VerifierError as error:
    print(f'mathematics left out: {error}')
  else:
    with made:
      answers_m, records_m = math_rows(FLAGS.math)
      grades = made.grade(answers_m, records_m)
      assert grades.scores() == [1.0] * FLAGS.math
      figures['math_per_s'] = FLAGS.math / grades.seconds
  made, _ = started('verifiers:hang', timeout_s=TIMEOUT_S)
  with made:
    made.grade(answers[:200], records[:200])
    figures['batch_s'] = made.grade(answers, records).seconds
    answers[len(answers) // 2] = 'hang'
    grades = made.grade(answers, records)
    figures['batch_with_a_hang_s'] = grades.seconds
    figures['timeout_s'] = TIMEOUT_S
    figures['rows_lost'] = len(answers) - grades.statuses.count('ok')
  return figures


def main(argv):
  """Prints a line a figure."""
  del argv
  figures = measure()
  for name, value in figures.items():
    print(f'{name:28} {value:12,.2f}')
  if FLAGS.json:
    with open(FLAGS.json, 'w') as file:
      json.dump(figures, file, indent=1)


if __name__ == '__main__':
  flags.DEFINE_integer('workers', 2, 'Worker processes.', lower_bound=1)
  flags.DEFINE_integer('rows', 20_000, 'Integer answers.', lower_bound=200)
  flags.DEFINE_integer('math', 2000, 'Mathematical answers.', lower_bound=1)
  flags.DEFINE_string('json', '', 'File for the figures.')
  app.run(main)
