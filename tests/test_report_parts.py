"""Building blocks of the HTML pages."""

import base64
import hashlib
import json
import re

import pytest

from meta_rl import report_parts as parts


@pytest.mark.parametrize(
  'text',
  [
    '</script><script>alert(1)</script>',
    '<!--<script>',
    ']]>&amp;\u2028\u2029\x00\ud800"\\u003c',
    'ü → 猫',
  ],
)
def test_json_block_gives_back_what_it_holds_and_cannot_be_left(text):
  block = parts.json_block('data', {text: [text, None, 0.5]})
  start, end = '<script type="application/json" id="data">', '</script>\n'
  assert block.startswith(start)
  assert block.endswith(end)
  inner = block[len(start) : -len(end)]
  assert re.search('[^ -~]|[<>&]', inner) is None
  assert json.loads(inner) == {text: [text, None, 0.5]}


def test_only_the_given_script_may_run():
  page = parts.document('t', '<p>b</p>', script='f("<")')
  digest = base64.b64encode(hashlib.sha256(b'f("<")').digest()).decode()
  assert page.count('<script>f("<")</script>') == 1
  assert f'script-src &#x27;sha256-{digest}&#x27;"' in page
  bare = parts.document('t', '<p>b</p>')
  assert 'script' not in bare.replace('default-src', '')
  assert 'default-src &#x27;none&#x27;;' in bare


def test_row_of_a_policy():
  row = parts.policy_row('A<', 2, [('l&', '1', 'x\n<y')], detail='d>')
  assert row.startswith('<tr><th scope="row"><span class="policy"><svg')
  assert 'A&lt;<span class="detail">d&gt;</span>' in row
  assert row.endswith(
    '<td data-label="l&amp;"><span><span class="figure">1</span>'
    '<span class="detail">x</span><span class="detail">&lt;y</span></span></td>'
    '</tr>\n'
  )
  assert '<svg' not in parts.policy_row('A', None, [])
