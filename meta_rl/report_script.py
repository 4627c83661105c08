"""The script of the report's trace viewer: plain JavaScript, no library.

It reads the JSON that `meta_rl.report_viewer` wrote into the page and nothing
else, and sets what comes from a run as text, never as markup.
"""

SCRIPT = """
'use strict';
(() => {
  const root = document.getElementById('viewer');
  const text = document.getElementById('viewer-data').textContent;
  const { policies, traces, width } = JSON.parse(text);
  const template = root.querySelector('template');
  const shown = root.querySelector('.shown');
  const position = root.querySelector('.position');
  const state = { kind: 'all', policy: '' };
  let listed = traces, at = 0;

  function set(element, attributes) {
    for (const name in attributes) element.setAttribute(name, attributes[name]);
    return element;
  }

  function make(tag, attributes, ...children) {
    const element = set(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  }

  const isOf = (trace, kind, policy) =>
    (kind === 'all' || trace.classes.includes(kind)) &&
    (policy === '' || trace.policy === Number(policy));

  function chartOf({ points, stop, marks, label }, color) {
    const chart = template.content.firstElementChild.cloneNode(true);
    const own = chart.querySelector('.stop');
    set(chart, { 'aria-label': label });
    set(chart.querySelector('polygon'), {
      points: `0,2 ${points} ${width},2`,
    });
    set(chart.querySelector('polyline'), {
      points, stroke: `var(--s${color})`,
    });
    set(own, { x1: stop, x2: stop });
    for (const x of marks) {
      const mark = set(own.cloneNode(), {
        x1: x, x2: x, stroke: 'var(--ink)', 'stroke-dasharray': 'none',
      });
      own.after(mark);
    }
    return chart;
  }

  function rowOf(row) {
    const words = make('span', { class: 'text' }, row.text);
    if (row.left_out) {
      words.append(make('em', {}, `… (${row.left_out} more characters)`));
    }
    for (const note of row.notes) {
      words.append(' ', make('span', { class: 'badge' }, note));
    }
    return make('li', { class: row.shade }, words,
      make('span', { class: 'values' }, make('b', {}, row.progress),
        ` J ${row.success}`));
  }

  function listOf(trace) {
    const stops = new Map(trace.stops);
    const list = make('ol', { class: 'episodes' });
    const stop = (boundary) => {
      if (stops.has(boundary)) {
        list.append(make('li', { class: 'rule' }, stops.get(boundary)));
      }
    };
    list.append(make('li', { class: 'plain' },
      make('span', {}, 'no thinking yet'),
      make('span', { class: 'values' }, `J ${trace.start}`)));
    stop(0);
    trace.rows.forEach((row, j) => { list.append(rowOf(row)); stop(j + 1); });
    if (trace.left_out) {
      const more = `… and ${trace.left_out} more episodes`;
      list.append(make('li', { class: 'plain' }, make('span', {}, more)));
    }
    return list;
  }

  function show() {
    position.textContent = `${listed.length ? at + 1 : 0} of ${listed.length}`;
    shown.scrollTop = 0;
    if (!listed.length) {
      shown.replaceChildren(make('p', { class: 'note' },
        'No trace of this policy is in this class.'));
      return;
    }
    const trace = listed[at], { name, color } = policies[trace.policy];
    const parts = [
      make('h3', { class: `t${color}` }, make('span', { class: 'name' }, name),
        make('span', { class: 'stop' }, trace.stopped),
        ...trace.classes.map((kind) =>
          make('span', { class: 'badge' }, kind))),
      make('p', { class: 'problem' }, 'Problem ',
        make('span', { class: 'mono' }, trace.prompt)),
    ];
    if (trace.chart) parts.push(chartOf(trace.chart, color));
    parts.push(listOf(trace));
    if (trace.answer !== null) {
      parts.push(make('p', { class: 'answer' }, 'Answer ',
        make('span', { class: 'mono' }, trace.answer), ' ',
        make('strong', {}, trace.verdict)));
    }
    shown.replaceChildren(...parts);
  }

  function choose(group, value) {
    const last = listed[at];
    state[group] = value;
    for (const button of root.querySelectorAll(`[data-${group}]`)) {
      const pressed = button.dataset[group] === value;
      button.setAttribute('aria-pressed', pressed);
    }
    for (const button of root.querySelectorAll('[data-kind]')) {
      const { kind } = button.dataset;
      const own = traces.filter((trace) => isOf(trace, kind, state.policy));
      button.querySelector('.number').textContent = own.length;
    }
    listed = traces.filter((t) => isOf(t, state.kind, state.policy));
    // The same trace if it is still there, else one of the same problem.
    at = listed.indexOf(last);
    if (at < 0) at = listed.findIndex((t) => last && t.prompt === last.prompt);
    at = Math.max(at, 0);
    show();
  }

  function turn(by) {
    if (listed.length) at = (at + by + listed.length) % listed.length;
    show();
  }

  root.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (!button) return;
    const { kind, policy, turn: by } = button.dataset;
    if (kind !== undefined) choose('kind', kind);
    if (policy !== undefined) choose('policy', policy);
    if (by !== undefined) turn(Number(by));
  });
  root.addEventListener('keydown', (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    turn(by);
  });
  show();
  root.hidden = false;
})();
"""
