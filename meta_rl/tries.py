"""Accepted answers as a trie: what several begin with is fed once.

    answers       8 5 +        tree    stop ─ 8 ─ 5 ─ (+)
                  8 6 -                       └ 6 ─ (-)
                  5 8 +                └ 5 ─ 8 ─ (+)

A probe of a boundary feeds the stop tokens and the nodes of the tree; the last
token of an answer, in brackets, is predicted only. A node sees the stop tokens
and the nodes above it, so that its features are those of its own prefix, and
the sum over an answer's tokens is what feeding it by itself would give.

Axes: N trees, S answers, A answer tokens, m stop tokens, D = m + A - 1 depths,
M = m + S (A - 1) nodes at most.
"""

from typing import NamedTuple

import jax.numpy as jnp

from meta_rl.types import Array


class Trie(NamedTuple):
  """N trees; nodes are numbered from the stop tokens on, a parent first.

  Attributes:
    size: i32[N], nodes of each tree; 0 where it has no answer.
    tokens: i32[N,M], token of each node.
    depth: i32[N,M], nodes above it.
    owner: i32[N,M], an answer that it is part of.
    path: i32[N,S,D], the node of each answer at each depth; anything beyond
      the answer's end.
  """

  size: Array
  tokens: Array
  depth: Array
  owner: Array
  path: Array


def make(stop: Array, answers: Array, fed: Array) -> Trie:
  """Returns the trees of N sets of answers.

  Args:
    stop: i32[m], tokens that come before any answer.
    answers: i32[N,S,A].
    fed: bool[N,S,A], True on the tokens of answers that exist; the first token
      of an answer has to be there for the others to count.

  Example:
    >>> import jax.numpy as jnp
    >>> from meta_rl import tries
    >>> answers = jnp.array([[[8, 5, 1], [8, 6, 1], [5, 8, 1]]])
    >>> tree = tries.make(jnp.array([4]), answers, jnp.ones((1, 3, 3), bool))
    >>> tree.size.tolist(), tree.tokens[0, :6].tolist()
    ([6], [4, 8, 5, 6, 5, 8])
    >>> tree.path[0].tolist()
    [[0, 1, 2], [0, 1, 3], [0, 4, 5]]
  """
  sets, number, length = answers.shape
  first = len(stop)
  inner, width = fed[:, :, 1:], length - 1  # the last token is predicted only
  # same[n,s,r,i]: answers s and r have one node at depth m + i.
  same = answers[:, :, None, :-1] == answers[:, None, :, :-1]
  same = jnp.cumprod(same, axis=-1, dtype=jnp.int32).astype(bool)
  same &= inner[:, None]
  of = jnp.argmax(same, axis=2)  # the first answer that has it
  new = inner & (of == jnp.arange(number)[:, None])
  flat = new.reshape(sets, number * width)
  rank = first + jnp.cumsum(flat, axis=1) - 1
  rank = rank.reshape(new.shape)
  node = jnp.take_along_axis(rank, of, axis=1)
  stops = jnp.broadcast_to(jnp.arange(first), (sets, number, first))
  order = jnp.argsort(~flat, axis=1, stable=True)
  behind = lambda head, rows: jnp.concatenate(
    [jnp.broadcast_to(head, (sets, first)), rows], axis=1
  )
  inside = answers[:, :, :-1].reshape(sets, -1)
  divisor = max(width, 1)
  return Trie(
    size=jnp.where(fed[:, :, 0].any(1), first + flat.sum(1), 0),
    tokens=behind(stop, jnp.take_along_axis(inside, order, axis=1)),
    depth=behind(jnp.arange(first), first + order % divisor),
    owner=behind(0, order // divisor),
    path=jnp.concatenate([stops, node], axis=2).astype(jnp.int32),
  )


def sees(path: Array, depth: Array, node: Array) -> Array:
  """Returns bool[...,Q,Q], whether node q is k or has it above it.

  Args:
    path: i32[...,Q,D], the nodes above node q, by depth, and q itself.
    depth: i32[...,Q].
    node: i32[...,Q], numbers within a tree.
  """
  at = jnp.broadcast_to(depth[..., None, :], (*depth.shape, depth.shape[-1]))
  above = jnp.take_along_axis(path, at, axis=-1) == node[..., None, :]
  return above & (depth[..., None, :] <= depth[..., None])
