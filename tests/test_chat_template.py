"""Chat templates of checkpoints, golden prompts, and how models think."""

import datetime
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meta_rl import chat_template
from meta_rl.chat_template import ChatTemplate, ChatTemplateError

SYSTEM = {'role': 'system', 'content': 'Be brief.'}
USER = {'role': 'user', 'content': 'What is 2 < 3?'}
ANSWER = {'role': 'assistant', 'content': '<think>\nhm\n</think>\n\nTrue.'}
AGAIN = {'role': 'user', 'content': 'Sure?'}

# Written for these tests in the manner of each family's own template: what they
# use of Jinja is what matters.
CHATML = r"""
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\nYou help.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] }}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".strip()

LLAMA3 = r"""
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Today Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""".strip()

QWEN3 = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\n' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1) %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- if loop.index0 < ns.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""".strip()

GEMMA = r"""
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else 'user' -%}
    {{ '<start_of_turn>' + role + '\n' + message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
""".strip()


def test_chatml():
  template = ChatTemplate(CHATML)
  assert template.render([USER]) == (
    '<|im_start|>system\nYou help.<|im_end|>\n'
    '<|im_start|>user\nWhat is 2 < 3?<|im_end|>\n'
    '<|im_start|>assistant\n'
  )
  assert template.render([SYSTEM, USER], add_generation_prompt=False) == (
    '<|im_start|>system\nBe brief.<|im_end|>\n'
    '<|im_start|>user\nWhat is 2 < 3?<|im_end|>\n'
  )


def test_llama3():
  template = ChatTemplate(
    LLAMA3,
    special_tokens={'bos_token': '<|begin_of_text|>'},
    now=datetime.datetime(2025, 7, 26),
  )
  text = (
    '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n'
    'Today Date: {}\n\nBe brief.<|eot_id|>'
    '<|start_header_id|>user<|end_header_id|>\n\nWhat is 2 < 3?<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n'
  )
  assert template.render([SYSTEM, USER]) == text.format('26 Jul 2025')
  found = template.render([SYSTEM, USER], date_string='1 Jan 2024')
  assert found == text.format('1 Jan 2024')
  # Without `now` it is today's date.
  today = ChatTemplate('{{ strftime_now("%Y") }}').render([USER])
  assert abs(int(today) - datetime.datetime.now().year) <= 1


def test_qwen3():
  template = ChatTemplate(QWEN3)
  start = '<|im_start|>user\nWhat is 2 < 3?<|im_end|>\n'
  opening = '<|im_start|>assistant\n'
  assert template.render([USER]) == start + opening
  assert template.render([USER], enable_thinking=True) == start + opening
  assert template.render([USER], enable_thinking=False) == (
    start + opening + '<think>\n\n</think>\n\n'
  )
  # The thoughts of earlier turns are left out; tojson escapes no HTML.
  found = template.render(
    [USER, ANSWER, AGAIN], tools=[{'name': 'caf\u00e9 <&>', 'n': 1}]
  )
  assert found == (
    '<|im_start|>system\n{"name": "caf\u00e9 <&>", "n": 1}\n<|im_end|>\n'
    + start
    + '<|im_start|>assistant\nTrue.<|im_end|>\n'
    + '<|im_start|>user\nSure?<|im_end|>\n'
    + opening
  )


def test_gemma():
  template = ChatTemplate(GEMMA, special_tokens={'bos_token': '<bos>'})
  assert template.render([USER, {'role': 'assistant', 'content': 'Yes '}]) == (
    '<bos><start_of_turn>user\nWhat is 2 < 3?<end_of_turn>\n'
    '<start_of_turn>model\nYes<end_of_turn>\n<start_of_turn>model\n'
  )
  with pytest.raises(ChatTemplateError, match='System role not supported'):
    template.render([SYSTEM, USER])
  with pytest.raises(ChatTemplateError, match='roles must alternate'):
    template.render([USER, USER])


def test_the_rest_of_what_templates_use():
  """Blocks take no line of their own; loop controls; marks of generation."""
  text = (
    '{% for m in messages %}\n'
    '  {% if loop.index > 1 %}{% break %}{% endif %}\n'
    '{% generation %}{{ m.content }}{% endgeneration %}\n'
    '{% endfor %}\n'
  )
  assert ChatTemplate(text).render([USER, AGAIN]) == 'What is 2 < 3?'


def test_messages_are_not_changed():
  messages = [dict(USER)]
  with pytest.raises(ChatTemplateError, match='cannot be filled in'):
    ChatTemplate('{{ messages.append(1) }}').render(messages)
  assert messages == [USER]


# ---- templates that are wrong, or worse


@pytest.mark.parametrize(
  'text',
  [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception.__globals__['json'] }}",
    '{{ strftime_now.__closure__[0] }}',
    "{{ self.__init__.__globals__['os'] }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    '{{ 1 / 0 }}',
    '{{ messages[0].content.format(1).x.y }}',
    '{{ "{0.__class__.__mro__}".format(messages) }}',
    '{{ none_such.attribute }}',
    '{{ 1 + "a" }}',
    '{% for i in range(100000000) %}{% endfor %}',
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
  ],
)
def test_what_the_sandbox_forbids_and_what_fails(text):
  with pytest.raises(ChatTemplateError, match='cannot be filled in') as error:
    ChatTemplate(text).render([USER])
  assert '\n' not in str(error.value)


def test_what_is_no_template():
  with pytest.raises(ChatTemplateError, match='no Jinja template, line 2'):
    ChatTemplate('a\n{% if %}')
  with pytest.raises(ChatTemplateError, match='message 1 must be a dict'):
    ChatTemplate(CHATML).render([USER, 'hello'])
  with pytest.raises(ChatTemplateError, match='message 0 must be a dict'):
    ChatTemplate(CHATML).render([{'content': 'x'}])


def test_without_jinja(monkeypatch):
  monkeypatch.setitem(sys.modules, 'jinja2', None)
  with pytest.raises(ChatTemplateError, match=r"pip install 'meta-rl\[llm\]'"):
    ChatTemplate('x')


# ---- of a checkpoint


def config_of(folder, **config):
  (folder / 'tokenizer_config.json').write_text(json.dumps(config), 'utf-8')


def test_of_a_folder(tmp_path):
  text = '{{ bos_token }}{{ eos_token }}{{ messages[0].content }}'
  tokens = {'bos_token': {'content': '<s>'}, 'eos_token': '</s>'}
  config_of(tmp_path, chat_template=text, pad_token=None, **tokens)
  template = chat_template.from_folder(tmp_path)
  assert template.render([USER]) == '<s></s>What is 2 < 3?'
  # A file of its own comes first.
  (tmp_path / 'chat_template.jinja').write_text('own {{ bos_token }}')
  assert chat_template.from_folder(tmp_path).render([USER]) == 'own <s>'


def test_several_templates_by_name(tmp_path):
  both = [
    {'name': 'default', 'template': 'plain'},
    {'name': 'tool_use', 'template': 'tools'},
  ]
  config_of(tmp_path, chat_template=both)
  assert chat_template.from_folder(tmp_path).render([USER]) == 'plain'
  found = chat_template.from_folder(tmp_path, variant='tool_use')
  assert found.render([USER]) == 'tools'
  with pytest.raises(ChatTemplateError, match="has no chat template 'rag'"):
    chat_template.from_folder(tmp_path, variant='rag')
  config_of(tmp_path, chat_template='one')
  with pytest.raises(ChatTemplateError, match="variant='rag' is asked for"):
    chat_template.from_folder(tmp_path, variant='rag')


def test_folders_without_a_template(tmp_path):
  with pytest.raises(ChatTemplateError, match='has no chat template: neither'):
    chat_template.from_folder(tmp_path)
  config_of(tmp_path, bos_token='<s>')
  with pytest.raises(ChatTemplateError, match='has no chat template: neither'):
    chat_template.from_folder(tmp_path)
  for text in ('{', '[]'):
    (tmp_path / 'tokenizer_config.json').write_text(text)
    with pytest.raises(ChatTemplateError, match='config.json cannot be read'):
      chat_template.from_folder(tmp_path)
  (tmp_path / 'tokenizer_config.json').unlink()
  (tmp_path / 'chat_template.jinja').write_bytes(b'\xff')
  with pytest.raises(ChatTemplateError, match='chat_template.jinja is not UTF'):
    chat_template.from_folder(tmp_path)


# ---- how models think


def test_r1_stops_as_in_the_paper():
  r1 = chat_template.thinking('r1')
  # arXiv 2503.07572: behind the prefix and a blank line.
  assert r1.forced_stop() == (
    "\n\nTime is up.\n\nGiven the time I've spent and the approaches I've "
    'tried, I should stop thinking and formulate a final answer based on what '
    'I already have.\n</think>\n\n**Step-by-Step Explanation and Answer:**\n\n'
    '1. **'
  )
  assert r1.natural_stop() == '\n</think>'
  assert r1.opened('<|Assistant|>') == '<|Assistant|><think>\n'
  assert r1.opened('<|Assistant|><think>\n') == '<|Assistant|><think>\n'
  assert r1.opened('<|Assistant|><think>') == '<|Assistant|><think>'


def test_a_plain_model():
  plain = chat_template.thinking('plain')
  assert plain.forced_stop() == '\n\n####'
  assert plain.natural_stop() == '\n####'
  assert plain.opened('Q: 1 + 1\n') == 'Q: 1 + 1\n'
  assert plain.split('two\n#### 2') == ('two\n', ' 2')
  own = chat_template.thinking(
    'plain', close='Answer:', stop_strings=('\nQ:',), answer_prefix=' '
  )
  assert own.forced_stop() == '\n\nAnswer: '
  assert own.split('so 2 Answer: 2\nQ: 3') == ('so 2 ', ' 2')


@pytest.mark.parametrize(
  'response, thought, answer',
  [
    ('<think>\nhm\n</think>\n\n2', '\nhm\n', '\n\n2'),
    ('hm</think>2', 'hm', '2'),
    ('hm</think>2</think>3', 'hm', '2</think>3'),
    ('hm', 'hm', None),
    ('', '', None),
    ('</think>', '', ''),
  ],
)
def test_a_response_in_two(response, thought, answer):
  assert chat_template.thinking('r1').split(response) == (thought, answer)


@pytest.mark.parametrize(
  'text, stops, expected',
  [
    ('abcabd', ['b', 'c'], ('a', True)),
    ('abcabd', ['bd', 'ca'], ('ab', True)),
    ('abc', ['x'], ('abc', False)),
    ('abc', [], ('abc', False)),
    ('', ['x'], ('', False)),
  ],
)
def test_stop_strings(text, stops, expected):
  assert chat_template.cut(text, stops) == expected


@given(st.text('ab', max_size=12), st.lists(st.text('ab', min_size=1)))
def test_what_is_left_has_no_stop_string(text, stops):
  left, found = chat_template.cut(text, stops)
  assert text.startswith(left)
  assert found == any(stop in text for stop in stops)
  assert not any(stop in left for stop in stops)
  assert not found or any(text[len(left) :].startswith(s) for s in stops)


def test_options_that_cannot_be():
  with pytest.raises(ValueError, match="thinking must be one of .*'r2'"):
    chat_template.thinking('r2')
  with pytest.raises(ValueError, match=r"unknown fields \['closes'\]"):
    chat_template.thinking('r1', closes='x')
  with pytest.raises(ValueError, match="close='': give the string"):
    chat_template.thinking('plain', close='')
  for stops in ('ab', ('',)):
    with pytest.raises(ValueError, match='stop_strings'):
      chat_template.cut('ab', stops)
  with pytest.raises(ValueError, match='which would end every response'):
    chat_template.thinking('r1', stop_strings=('',))
