"""What OpenAI's API answers: JSON of responses, whole and in chunks (host).

A thought is `reasoning_content` of a chat's message or delta; a completion's
text has everything. Beside OpenAI's fields `thinking_stopped_by` says what
ended the thought, `confidence` has the scores that were asked for, and the
details of the usage count the tokens of thoughts, probes and answers apart.
"""

import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Any

from meta_rl.serving.openai_api import Ask


@dataclasses.dataclass
class Said:
  """What one response has said by now.

  Attributes:
    thought, answer: texts; of a completion all is answer.
    finish: '' while it goes on, 'stop' or 'length'.
    scores: (thinking tokens, score) of each look of a rule.
    thinking, answer_tokens, probe: tokens.
    stopped_by: what ended the thought; None: nothing yet.
    forced: whether that was not the model.
  """

  thought: str = ''
  answer: str = ''
  finish: str = ''
  scores: list[tuple[int, float]] = dataclasses.field(default_factory=list)
  thinking: int = 0
  answer_tokens: int = 0
  probe: int = 0
  stopped_by: str | None = None
  forced: bool = False


def head_of(*, is_chat: bool, stream: bool, model: str) -> dict:
  """Returns the fields that responses and their chunks begin with."""
  name = 'chat.completion' if is_chat else 'text_completion'
  return {
    'id': f'{"chatcmpl" if is_chat else "cmpl"}-{uuid.uuid4().hex}',
    'object': f'{name}.chunk' if is_chat and stream else name,
    'created': int(time.time()),
    'model': model,
  }


def response(head: dict, said: Sequence[Said], prompt_tokens: int, ask: Ask):
  """Returns the body of a whole response."""
  choices = []
  for index, one in enumerate(said):
    choice = {'index': index, 'finish_reason': one.finish, 'logprobs': None}
    if ask.messages is None:
      choice |= {'text': one.answer}
    else:
      message = {'role': 'assistant', 'content': one.answer, 'refusal': None}
      message |= {'reasoning_content': one.thought} if one.thought else {}
      choice |= {'message': message}
    choices.append(choice | _closing(one, ask))
  return head | {'choices': choices, 'usage': usage(said, prompt_tokens)}


def chunk(
  head: dict, index: int, new: Said, ask: Ask, *, first: bool = False
) -> dict:
  """Returns a chunk of a stream.

  Args:
    head: of `head_of`.
    index: of the response.
    new: with the texts that are new; at its end with all of its counts.
    ask: what is answered.
    first: the first chunk of a chat names the role.
  """
  choice = {'index': index, 'finish_reason': new.finish or None}
  choice |= {'logprobs': None}
  if ask.messages is None:
    choice |= {'text': new.answer}
  else:
    delta = {'role': 'assistant', 'content': ''} if first else {}
    delta |= {'reasoning_content': new.thought} if new.thought else {}
    delta |= {'content': new.answer} if new.answer else {}
    choice |= {'delta': delta}
  if new.finish:
    choice |= _closing(new, ask)
  with_usage = {'usage': None} if ask.include_usage else {}
  return head | {'choices': [choice]} | with_usage


def usage_chunk(head: dict, said: Sequence[Said], prompt_tokens: int) -> dict:
  """Returns the last chunk of a stream that was asked for its usage."""
  return head | {'choices': [], 'usage': usage(said, prompt_tokens)}


def usage(said: Sequence[Said], prompt_tokens: int) -> dict:
  """Returns the tokens of all responses of a request.

  completion_tokens are all that were decoded: thinking, answer and probes.
  """
  thinking = sum(one.thinking for one in said)
  probe = sum(one.probe for one in said)
  answer = sum(one.answer_tokens for one in said)
  return {
    'prompt_tokens': prompt_tokens,
    'completion_tokens': thinking + probe + answer,
    'total_tokens': prompt_tokens + thinking + probe + answer,
    'completion_tokens_details': {
      'reasoning_tokens': thinking + probe,
      'thinking_tokens': thinking,
      'probe_tokens': probe,
      'answer_tokens': answer,
      'forced': any(one.forced for one in said),
    },
  }


def _closing(said, ask):
  """Returns what a choice says besides, once it is whole."""
  found = {'thinking_stopped_by': said.stopped_by}
  if ask.scores:
    found['confidence'] = [
      {'thinking_tokens': tokens, 'score': score}
      for tokens, score in said.scores
    ]
  return found


def models(name: str, created: int, **about: Any) -> dict:
  """Returns the body of /v1/models."""
  one = {'id': name, 'object': 'model', 'created': created}
  return {'object': 'list', 'data': [one | {'owned_by': 'meta_rl'} | about]}
