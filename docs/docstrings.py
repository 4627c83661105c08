"""A Sphinx extension: docstrings in this library's form, and links to files.

Napoleon would misread most of them: what stands before a colon under `Returns:`
it takes for a type, indented equations for quotations in which every `_`, `*`
and `|` is markup, and single backticks, which say code here, for a role. The
form is small, so it is read whole:

    Returns one line.

      equations, tables, In and Out: whatever is indented, as it stands

    Prose with `code`, which becomes a link where it names a public object.

    Args:
      name: f32[B,K], what it is.

    Returns:
      f32[B].

    Example:
      >>> doctest lines

    Source: arXiv 2503.07572.

Pages link to files of the repository, such as a name to `../meta_rl/regret.py`,
which is right where they are read as files. Built, a link goes to the reference
where the name is of a public object, and to a copy of the file otherwise.
"""

import importlib
import inspect
import re
import textwrap

_ENTRIES = {'Args': 'Arguments', 'Attributes': 'Attributes', 'Raises': 'Raises'}
_BODIES = ('Returns', 'Example')
_SECTION = re.compile(rf'({"|".join([*_ENTRIES, *_BODIES])}):')
_ENTRY = re.compile(r'(\*{0,2}\w+(?:, \*{0,2}\w+)*):(?:\s+|$)')
_CODE = re.compile(r'`([^`]+)`')
_ARXIV = re.compile(r'arXiv[ :](\d{4}\.\d{5})')
# What reST would take for the item of a list: '- x', '1. x', '(a) x'.
_ITEM = re.compile(r'[-+*•]\s|\(?\w{1,3}[.)]\s')
# Lines that stand as they are though nothing indents them: columns, In and Out.
_AS_IT_IS = re.compile(r'In:|\S {3,}\S')
# A link out of docs/, from a page of it or of a folder inside it.
_OUT = re.compile(r'\[(`?)([^\]`]+)`?\]\(((?:\.\./)+)([\w./-]+)\)')
_AUTO = re.compile(r'^\.\. auto(module|function|class):: (\S+)((?:\n +:.*)*)')


def to_rst(lines, link=lambda code: None):
  """Returns the lines of a docstring as lines of reST.

  Args:
    lines: without common indentation, as `inspect.cleandoc` leaves them.
    link: `code -> str | None`, the full name of the object that code names.
  """
  out, rest = [], [line.rstrip() for line in lines]
  while rest:
    if not rest[0]:
      rest.pop(0)
    elif found := _SECTION.fullmatch(rest[0]):
      body, rest = _split(rest[1:], lambda line: not line or line[0] == ' ')
      body = textwrap.dedent('\n'.join(body)).strip('\n').split('\n')
      out += _section(found[1], body, link)
    elif rest[0][0] == ' ':
      body, rest = _split(rest, lambda line: not line or line[0] == ' ')
      out += _literal(body)
    else:
      body, rest = _split(rest, bool)
      as_it_is = any(_AS_IT_IS.match(x) or _AS_IT_IS.search(x) for x in body)
      out += _literal(body) if as_it_is else [inline(' '.join(body), link), '']
  return out


def inline(text, link=lambda code: None):
  """Returns prose as reST: code as literals or links, no other markup."""
  text = ' '.join(text.split())
  out, position = '', 0
  for found in _CODE.finditer(text):
    out = _append(out, _plain(text[position : found.start()]))
    full = link(found[1])
    code = f':py:obj:`{found[1]} <{full}>`' if full else f'``{found[1]}``'
    out, position = _append(out, code), found.end()
  out = _append(out, _plain(text[position:]))
  return '\\' + out if _ITEM.match(out) else out


def _plain(text):
  text = re.sub(r'([\\*_|])', r'\\\1', text)
  return _ARXIV.sub(r'`\g<0> <https://arxiv.org/abs/\1>`__', text)


def _append(text, part):
  """Returns both, with a gap of width 0 where markup needs a word's end."""
  ends = text[-1:] == '`' and part[:1] not in ('', *' .,;:!?)]\'"-/')
  begins = part[:1] in ('`', ':') and part[-1:] in '`_' and text[-1:].strip()
  return f'{text}\\ {part}' if ends or begins else text + part


def _split(lines, belongs):
  """Returns the lines before the first that does not belong, and the rest."""
  for i, line in enumerate(lines):
    if not belongs(line):
      return lines[:i], lines[i:]
  return lines, []


def _literal(lines):
  lines = textwrap.dedent('\n'.join(lines)).strip('\n').split('\n')
  if lines[0].startswith('>>> '):
    return [*lines, '']
  return ['.. code-block:: none', '', *_indented(lines), '']


def _section(name, body, link):
  """Returns a field of its name: a list of entries, or the text itself.

  `Returns:` is a list where each of its lines has a name, as those of a dict.
  """
  if name == 'Example':
    return ['.. rubric:: Example', '', *_literal(body)]
  flush = [line for line in body if line[:1] not in ('', ' ')]
  listed = len(flush) > 1 and all(map(_ENTRY.match, flush))
  if name == 'Returns' and not listed:
    return [':Returns:', *_indented(to_rst(body, link)), '']
  out, rest = [], body
  while rest:
    entry, rest = _split(rest[1:], lambda line: not line or line[0] == ' ')
    head = body[len(body) - len(rest) - len(entry) - 1]
    found = _ENTRY.match(head)
    names = found[1] if found else ''
    text = [head[found.end() if found else 0 :], *entry]
    marked = ', '.join(f'**{_plain(n)}**' for n in names.split(', ') if n)
    out.append(f'- {marked} – {inline(" ".join(text), link)}')
  return [f':{_ENTRIES.get(name, name)}:', *_indented(out), '']


def _indented(lines):
  return [f'  {line}' if line else '' for line in lines]


def members(module):
  """Returns the public functions and classes of a module, by name.

  Those of `__all__` where it has one, else those that are defined in it.
  """
  names = getattr(module, '__all__', None)
  found = {}
  for name, value in vars(module).items():
    if not (inspect.isclass(value) or inspect.isroutine(value)):
      continue
    own = value.__module__ == module.__name__ and not name.startswith('_')
    if name in names if names is not None else own:
      found[name] = value
  return found


def documented(folder):
  """Returns the full names of all that the pages of a folder document."""
  names = set()
  for page in sorted(folder.glob('*.md')):
    for kind, target, options in _directives(page.read_text('utf-8')):
      if kind != 'module':
        names.add(target)
        continue
      module = importlib.import_module(target)
      chosen = options.get('members', None)
      if chosen is not None:
        chosen = [x.strip() for x in chosen.split(',') if x.strip()]
        names |= {f'{target}.{x}' for x in chosen or members(module)}
  return names


def _directives(text):
  """Yields (kind, target, options) of each auto directive of a page."""
  for block in re.split(r'^(?=\.\. )', text, flags=re.M):
    if found := _AUTO.match(block):
      options = dict(re.findall(r':([\w-]+): *(.*)', found[3]))
      yield found[1], found[2], options


def relink(text, folder, docs, public):
  """Returns the text of a page, its links out of docs/ as roles.

  Args:
    text: of the page.
    folder: that it lies in.
    docs: the folder of all pages.
    public: full names of what the reference has.
  """

  def role(found):
    tick, name, up, path = found.groups()
    if (folder / up / path).resolve().is_relative_to(docs):
      return found[0]
    if tick and f'meta_rl.{name}' in public:
      return f'{{py:obj}}`{name} <meta_rl.{name}>`'
    if path.endswith('/'):  # nothing to copy
      return f'{tick}{name}{tick}'
    return f'{{download}}`{name} <{up}{path}>`'

  return _OUT.sub(role, text)


def setup(app):
  """Connects the extension."""
  public = set()

  def read_pages(app):
    public.update(documented(app.srcdir / 'api'))

  def read_source(app, docname, source):
    page = (app.srcdir / docname).parent
    source[0] = relink(source[0], page, app.srcdir, public)

  def convert(app, what, name, obj, options, lines):
    module = name if what == 'module' else getattr(obj, '__module__', '')

    def link(code):
      code = code.removesuffix('()')
      places = (f'{module}.', 'meta_rl.', 'meta_rl.types.', '')
      for full in (place + code for place in places):
        if full in public and full != name:
          return full
      return None

    lines[:] = to_rst(lines, link)

  def skip(app, what, name, obj, skip, options):
    # What a NamedTuple says of each of its fields.
    alias = str(getattr(obj, '__doc__', '')).startswith('Alias for field')
    return True if alias else None

  app.connect('builder-inited', read_pages)
  app.connect('source-read', read_source)
  app.connect('autodoc-process-docstring', convert)
  app.connect('autodoc-skip-member', skip)
  return {'parallel_read_safe': True}
