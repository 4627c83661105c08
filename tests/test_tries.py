"""Tests of meta_rl.tries."""

import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import tries

STOP = (4, 9)


def make(rows, mask=None, stop=STOP):
  """The trees of lists of answers, written down without their padding."""
  length = max([1, *(len(answer) for row in rows for answer in row)])
  pad = lambda answer: [*answer, *[0] * (length - len(answer))]
  answers = np.array([[pad(a) for a in row] for row in rows], np.int32)
  fed = np.array(
    [[[i < len(a) for i in range(length)] for a in row] for row in rows]
  )
  trie = tries.make(
    jnp.asarray(stop, jnp.int32), jnp.asarray(answers), jnp.asarray(fed)
  )
  return trie


def test_a_tree_by_hand():
  trie = make([[[8, 5, 7, 2], [8, 6, 2], [5, 8, 2], [8, 5, 3, 2]]])
  # stop 4 - 9 - 8 - 5 - 7       (2)
  #                   - 3       (2)
  #               - 6           (2)
  #           - 5 - 8           (2)
  assert trie.size.tolist() == [9]
  assert trie.tokens[0, :9].tolist() == [4, 9, 8, 5, 7, 6, 5, 8, 3]
  assert trie.depth[0, :9].tolist() == [0, 1, 2, 3, 4, 3, 2, 3, 4]
  paths = [[0, 1, 2, 3, 4], [0, 1, 2, 5], [0, 1, 6, 7], [0, 1, 2, 3, 8]]
  for answer, path in enumerate(paths):
    assert trie.path[0, answer, : len(path)].tolist() == path


@pytest.mark.parametrize(
  ('answers', 'size'),
  [
    ([[5, 2], [5, 2]], 3),  # equal ones
    ([[2], [2]], 2),  # nothing but EOS: it is predicted from the stop tokens
    ([[5, 2], [5, 6, 2]], 4),  # one begins as another goes on
    ([[], []], 0),  # none
    ([[], [5, 6, 2], []], 4),
  ],
)
def test_size(answers, size):
  assert make([answers]).size.tolist() == [size]


def test_one_token_an_answer():
  trie = tries.make(
    jnp.array([4]), jnp.array([[[2], [2]]]), jnp.ones((1, 2, 1), bool)
  )
  assert trie.size.tolist() == [1]
  assert trie.tokens.tolist() == [[4]]


def test_every_answer_reads_itself_along_its_path():
  rng = np.random.default_rng(0)
  answers = rng.integers(0, 3, (20, 5, 4)).astype(np.int32)
  fed = np.arange(4) < rng.integers(0, 5, (20, 5, 1))
  trie = tries.make(
    jnp.array(STOP, jnp.int32), jnp.asarray(answers), jnp.asarray(fed)
  )
  for n in range(20):
    prefixes = set()
    for s in range(5):
      answer = answers[n, s][fed[n, s]].tolist()[:-1]
      prefixes |= {tuple(answer[: i + 1]) for i in range(len(answer))}
      path = trie.path[n, s, : len(STOP) + len(answer)]
      found = np.asarray(trie.tokens[n])[np.asarray(path)].tolist()
      if fed[n, s].any():
        assert found == [*STOP, *answer]
    assert trie.size[n] == (len(STOP) + len(prefixes)) * fed[n].any()


def test_a_node_sees_what_is_above_it():
  trie = make([[[8, 5, 7, 2], [8, 6, 2]]])
  node = jnp.arange(6)
  path = trie.path[0, trie.owner[0, node]]
  found = tries.sees(path, trie.depth[0, node], node)
  expected = [
    [1, 0, 0, 0, 0, 0],  # 4
    [1, 1, 0, 0, 0, 0],  # 9
    [1, 1, 1, 0, 0, 0],  # 8
    [1, 1, 1, 1, 0, 0],  # 8 5
    [1, 1, 1, 1, 1, 0],  # 8 5 7
    [1, 1, 1, 0, 0, 1],  # 8 6
  ]
  np.testing.assert_array_equal(found, np.array(expected, bool))
