// One figure that can be touched: its controls choose which picture is shown. No library; works offline and from a file.
function (id, data) {
  const root = document.getElementById(id), img = root.querySelector('img'), said = root.querySelector('figcaption');
  const panel = root.querySelector('.touch-panel'), sizes = data.controls.map(c => c.options.length), at = data.start.slice();
  const make = (tag, attributes, ...children) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...children);
    return node;
  };
  const redraw = [];
  const choose = (n, i) => {
    at[n] = Math.max(0, Math.min(sizes[n] - 1, i));
    const k = at.reduce((sum, i, n) => sum*sizes[n] + i, 0);
    img.src = data.pictures[k];
    img.alt = data.alt + ' ' + data.captions[k];
    said.textContent = data.captions[k];
    redraw.forEach(f => f());
  };
  panel.replaceChildren();
  data.controls.forEach((control, n) => {
    if (control.kind === 'grid') {  // chosen on the picture itself
      const [rows, cols] = control.grid, box = img.parentElement;
      box.tabIndex = 0;
      box.setAttribute('role', 'slider');
      box.setAttribute('aria-label', control.name + ': click, or use the arrow keys');
      panel.append(make('small', {textContent: 'Click on the picture, or use the arrow keys.'}));
      box.setAttribute('aria-valuemin', 0);
      box.setAttribute('aria-valuemax', sizes[n] - 1);
      redraw.push(() => { box.setAttribute('aria-valuenow', at[n]); box.setAttribute('aria-valuetext', control.options[at[n]]); });
      const pick = event => {
        const r = img.getBoundingClientRect(), cell = (v, count) => Math.max(0, Math.min(count - 1, Math.floor(v*count)));
        choose(n, cell((event.clientY - r.top)/r.height, rows)*cols + cell((event.clientX - r.left)/r.width, cols));
      };
      box.onpointerdown = event => { pick(event); box.focus({preventScroll: true}); };
      box.onpointermove = event => { if (event.buttons) pick(event); };
      box.onkeydown = event => {
        const r = Math.floor(at[n]/cols), c = at[n] % cols, step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
        if (!step) return;
        event.preventDefault();
        choose(n, Math.max(0, Math.min(rows - 1, r + step[0]))*cols + Math.max(0, Math.min(cols - 1, c + step[1])));
      };
    } else if (control.kind === 'choice') {
      const buttons = control.options.map((option, i) => {
        const button = make('input', {type: 'radio', name: id + n, onchange: () => choose(n, i)});
        redraw.push(() => { button.checked = at[n] === i; });
        return make('label', {}, button, ' ' + option);
      });
      panel.append(make('fieldset', {}, make('legend', {textContent: control.name}), ...buttons));
    } else {
      const slider = make('input', {type: 'range', min: 0, max: sizes[n] - 1, step: 1, oninput: () => choose(n, +slider.value)}), now = make('output', {});
      redraw.push(() => { slider.value = at[n]; now.textContent = control.options[at[n]]; slider.setAttribute('aria-valuetext', control.options[at[n]]); });
      panel.append(make('label', {className: 'touch-slider'}, control.name + ' ', slider, ' ', now));
    }
  });
  choose(0, at[0]);
}
