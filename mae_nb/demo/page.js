// What one does with the model: choose a picture, paint the mask, look. The forward pass is MAE's, of demo.js.
const PAGE = (() => {
  'use strict';
  const $ = id => document.getElementById(id), data = JSON.parse($('data').textContent), wasm = MAE.decode(data.wasm);
  const c = data.models[0].config, [rows, cols] = c.grid, L = rows*cols, H = rows*c.patch, W = cols*c.patch;
  const zoom = Math.max(1, Math.ceil(448/Math.max(H, W))), loaded = new Map();
  const now = {image: null, name: '', mask: Uint8Array.from(data.mask), kind: 'random', model: 0, other: -1, honest: false, block: 0, at: 0, look: Math.floor(rows/2)*cols + Math.floor(cols/2),
               inverted: false, focus: null, result: null, second: null, ms: 0};
  const model = i => {  // decoded when first used
    if (!loaded.has(i)) loaded.set(i, MAE.load(data.models[i], wasm));
    return loaded.get(i);
  };
  const make = (tag, fields, ...children) => {
    const node = Object.assign(document.createElement(tag), fields);
    node.append(...children);
    return node;
  };
  const place = l => `row ${Math.floor(l/cols) + 1}, column ${l % cols + 1}`;
  const count = () => now.mask.reduce((a, b) => a + b, 0);
  const decimals = v => Number.isNaN(v) ? '–' : v.toFixed(v < 0.1 ? 4 : 3);

  // --- masks ---
  let seed = 1;
  const rand = () => {  // mulberry32
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0)/4294967296;
  };
  const scorings = {  // a score for each patch; the highest are masked
    random: () => Array.from({length: L}, rand),
    grid: () => Array.from({length: L}, (_, l) => 2*(Math.floor(l/cols) % 2) + l % cols % 2 + rand()),
    block(most) {  // rectangles, as BEiT draws them, until there are enough
      const scores = Array.from({length: L}, rand), gone = new Set(), least = Math.max(1, Math.floor(L*16/196));
      while (gone.size < most) {
        const left = most - gone.size, area = least + rand()*Math.max(0, left - least), aspect = 0.3**(2*rand() - 1);
        const h = Math.max(1, Math.min(rows, Math.round(Math.sqrt(area*aspect)))), w = Math.max(1, Math.min(cols, Math.round(Math.sqrt(area/aspect))));
        const top = Math.floor(rand()*(rows - h + 1)), edge = Math.floor(rand()*(cols - w + 1));
        for (let y = top; y < top + h; y++) for (let x = edge; x < edge + w; x++) {
          if (!gone.has(y*cols + x)) { gone.add(y*cols + x); scores[y*cols + x] += 1 + left; }
        }
      }
      return scores;
    },
  };
  function draw_mask(kind, most) {
    const scores = scorings[kind](most), order = scores.map((_, l) => l).sort((a, b) => scores[b] - scores[a]);
    now.mask.fill(0);
    order.slice(0, most).forEach(l => { now.mask[l] = 1; });
    now.kind = kind;
  }

  // --- pictures on canvases ---
  const small = make('canvas', {width: W, height: H});
  function paint(id, image) {  // numbers (C, H, W) in [0, 1] onto the canvas of a tile
    const canvas = $(id).querySelector('canvas'), pixels = new ImageData(W, H), n = W*H;
    for (let i = 0; i < n; i++) {
      for (let k = 0; k < 3; k++) pixels.data[4*i + k] = 255*image[(c.channels === 3 ? k : 0)*n + i];
      pixels.data[4*i + 3] = 255;
    }
    small.getContext('2d').putImageData(pixels, 0, 0);
    if (canvas.width !== W*zoom || canvas.height !== H*zoom) Object.assign(canvas, {width: W*zoom, height: H*zoom});
    const g = canvas.getContext('2d');
    g.imageSmoothingEnabled = false;
    g.drawImage(small, 0, 0, W*zoom, H*zoom);
    return g;
  }
  const side = c.patch*zoom, cell = l => [l % cols*side, Math.floor(l/cols)*side, side, side];
  function ring(g, l, colour) {
    g.lineWidth = Math.max(3, side/12);
    g.strokeStyle = '#fff';
    g.strokeRect(...cell(l));
    g.lineWidth /= 2;
    g.strokeStyle = colour;
    g.strokeRect(...cell(l));
  }
  function heat(id, values, most) {  // a map over the picture, pale where there is nothing
    const pale = now.image.map(v => 0.75 + v/4), g = paint(id, pale);
    values.forEach((v, l) => { if (v) { g.fillStyle = `rgba(178, 58, 34, ${Math.min(0.9, 0.9*v/most)})`; g.fillRect(...cell(l)); } });
    return g;
  }
  function paste(painted) {
    const out = Float32Array.from(now.image);
    MAE.eachPixel(c, (at, from) => { if (now.mask[Math.floor(from/(c.patch**2*c.channels))]) out[at] = painted[at]; });
    return out;
  }

  // --- all that is seen ---
  function show() {
    const start = performance.now();
    now.result = MAE.reconstruct(model(now.model), now.image, now.mask, now.honest);
    now.ms = performance.now() - start;
    now.second = now.other < 0 ? null : MAE.reconstruct(model(now.other), now.image, now.mask, now.honest);
    paint('image', now.image);
    const g = paint('masked', now.image);
    for (let l = 0; l < L; l++) {
      if (now.mask[l]) { g.fillStyle = '#e0e0e0'; g.fillRect(...cell(l)); }
      g.lineWidth = 1;
      g.strokeStyle = 'rgba(128, 128, 128, .55)';
      g.strokeRect(...cell(l));
    }
    if (now.focus === 'masked') ring(g, now.at, '#b23a22');
    for (const [r, id] of [[now.result, ''], [now.second, '2']]) if (r) { paint('painted' + id, r.painted); paint('pasted' + id, paste(r.painted)); }
    const hidden = now.result.losses.map((v, l) => v*now.mask[l]);
    heat('losses', hidden, Math.max(...hidden));
    show_look();
    show_words();
  }
  function show_look() {
    const map = MAE.attention(now.result, now.block, now.look, L), g = heat('look', map || [], map ? Math.max(...map) : 1);
    ring(g, now.look, '#1f6fb2');
    const where = $('block').selectedOptions[0].textContent, top = map && map.indexOf(Math.max(...map));
    $('look').querySelector('canvas').setAttribute('aria-label', map ? `In ${where}, the patch in ${place(now.look)} looks most at ${place(top)}, ${Math.round(100*map[top])} % of its attention.`
      : `In ${where} the patch in ${place(now.look)} does not exist: it is masked, and the encoder sees visible patches only.`);
    $('look').querySelector('figcaption .hint').textContent = map ? 'touch a patch' : 'masked: not in the encoder';
  }
  function words() {
    const n = count(), told = r => `${decimals(r.loss)} (pixels off by ${decimals(r.error)})`;
    if (!n) return 'Nothing is masked, so there is no loss.';
    return `Loss on ${n} masked ${n === 1 ? 'patch' : 'patches'}: ${told(now.result)}` + (now.second ? `; ${data.models[now.other].name}: ${told(now.second)}` : '') + '.';
  }
  let later;
  function show_words() {
    const n = count(), about = model(now.model);
    $('ratio').value = n;
    $('ratio-said').textContent = `Masked: ${n} of ${L} patches (${Math.round(100*n/L)} %)`;
    $('ratio').setAttribute('aria-valuetext', `${n} of ${L} patches, ${Math.round(100*n/L)} %`);
    for (const radio of $('kinds').querySelectorAll('input')) radio.checked = radio.value === now.kind;
    const mixed = now.second && data.models[now.other].config.norm_pix_loss !== about.c.norm_pix_loss;
    $('numbers').querySelector('caption').textContent = (n ? `On ${n} masked ${n === 1 ? 'patch' : 'patches'}; ${L - n} go through the encoder.` : 'Nothing is masked, so there is no loss.')
      + (mixed ? ' These losses are of different targets, pixels and normalised pixels: compare the pixels.' : '');
    const line = (k, r) => make('tr', {}, Object.assign(make('th', {textContent: data.models[k].name}), {scope: 'row'}), make('td', {textContent: decimals(r.loss)}), make('td', {textContent: decimals(r.error)}));
    $('numbers').querySelector('tbody').replaceChildren(line(now.model, now.result), ...(now.second ? [line(now.other, now.second)] : []));
    $('about').textContent = `${about.name}: ${rows} × ${cols} patches of ${c.patch} × ${c.patch} pixels; encoder ${about.c.depth} blocks of width ${about.c.width}, decoder ${about.c.decoder_depth} of ${about.c.decoder_width}. `
      + `The encoder gets ${L - n} patches and the class token. Last pass: ${now.ms.toFixed(1)} ms in ${about.shop.fast ? 'WebAssembly' : 'plain JavaScript'}.`;
    $('masked').querySelector('canvas').setAttribute('aria-label', `${now.name} with ${n} of ${L} patches masked`);
    clearTimeout(later);
    later = setTimeout(() => say(words()), 600);  // once the hand rests
  }
  function say(text) { $('said').textContent = text; }
  function complain(text) { $('message').textContent = text; $('message').hidden = !text; }
  let asked = false;
  function refresh() {  // at most once a frame
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; show(); });
  }

  // --- painting, by pointer and by keyboard ---
  const patch_at = (frame, e) => {
    const r = frame.getBoundingClientRect(), at = (v, n) => Math.max(0, Math.min(n - 1, Math.floor(v*n)));
    return at((e.clientY - r.top)/r.height, rows)*cols + at((e.clientX - r.left)/r.width, cols);
  };
  function set(l, value) { now.mask[l] = value; now.kind = 'painted'; now.at = l; refresh(); }
  const steps = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  const moved = (l, [dy, dx]) => Math.max(0, Math.min(rows - 1, Math.floor(l/cols) + dy))*cols + Math.max(0, Math.min(cols - 1, l % cols + dx));
  function strokes(frame) {
    let value = null, last = 0;
    frame.addEventListener('pointerdown', e => {
      if (e.button) return;
      frame.setPointerCapture(e.pointerId);
      last = patch_at(frame, e);
      value = 1 - now.mask[last];
      set(last, value);
    });
    frame.addEventListener('pointermove', e => {
      if (value === null) return;
      const to = patch_at(frame, e), y = Math.floor(last/cols), x = last % cols, dy = Math.floor(to/cols) - y, dx = to % cols - x, n = Math.max(Math.abs(dy), Math.abs(dx));
      for (let i = 1; i <= n; i++) set((y + Math.round(dy*i/n))*cols + x + Math.round(dx*i/n), value);  // a fast hand skips patches
      last = to;
    });
    for (const end of ['pointerup', 'pointercancel']) frame.addEventListener(end, () => { value = null; });
    frame.addEventListener('keydown', e => {
      if (e.key === ' ' || e.key === 'Enter') set(now.at, 1 - now.mask[now.at]);
      else if (steps[e.key]) {
        const value = now.mask[now.at];
        now.at = moved(now.at, steps[e.key]);
        if (e.shiftKey) set(now.at, value);
      } else return;
      e.preventDefault();
      now.focus = 'masked';
      refresh();
      say(`${place(now.at)}: ${now.mask[now.at] ? 'masked' : 'visible'}`);
    });
    frame.addEventListener('focus', () => { now.focus = frame.matches(':focus-visible') ? 'masked' : null; refresh(); });
    frame.addEventListener('blur', () => { now.focus = null; refresh(); });
  }
  function looks(frame) {  // choose the patch whose attention is shown
    const choose = l => { if (!frame.classList.contains('drawing')) { now.look = l; show_look(); } };
    frame.addEventListener('pointerdown', e => choose(patch_at(frame, e)));
    frame.addEventListener('pointermove', e => { if (e.buttons) choose(patch_at(frame, e)); });
    frame.addEventListener('keydown', e => {
      if (!steps[e.key]) return;
      e.preventDefault();
      choose(moved(now.look, steps[e.key]));
      say($('look').querySelector('canvas').getAttribute('aria-label'));
    });
  }

  // --- pictures from elsewhere ---
  function take(image, name, own = -1) {  // the new picture: numbers (C, H, W) in [0, 1]; which of the page's own it is
    now.image = now.inverted ? image.map(v => 1 - v) : image;
    now.name = name;
    $('image').querySelector('canvas').setAttribute('aria-label', `The picture: ${name}`);
    [...$('strip').children].forEach((b, k) => b.setAttribute('aria-pressed', k === own));
    complain('');
    refresh();
  }
  function pixels_of(source, w, h) {  // the centre of anything that can be drawn, in the model's size and channels
    const scale = Math.min(w/W, h/H), cut = [(w - W*scale)/2, (h - H*scale)/2, W*scale, H*scale];
    let from = make('canvas', {width: Math.min(1024, Math.ceil(W*scale)), height: Math.ceil(Math.min(1024, Math.ceil(W*scale))*H/W)});
    const g = from.getContext('2d');
    g.fillStyle = '#fff';  // behind what is transparent
    g.fillRect(0, 0, from.width, from.height);
    g.imageSmoothingQuality = 'high';
    g.drawImage(source, ...cut, 0, 0, from.width, from.height);
    while (from.width > 2*W) {  // by halves, so that every pixel counts
      const next = make('canvas', {width: Math.ceil(from.width/2), height: Math.ceil(from.height/2)});
      next.getContext('2d').drawImage(from, 0, 0, next.width, next.height);
      from = next;
    }
    const last = make('canvas', {width: W, height: H}), n = W*H, out = new Float32Array(c.channels*n), brush = last.getContext('2d');
    brush.imageSmoothingQuality = 'high';
    brush.drawImage(from, 0, 0, W, H);
    const {data: d} = brush.getImageData(0, 0, W, H);
    for (let i = 0; i < n; i++) {
      if (c.channels === 1) out[i] = (0.299*d[4*i] + 0.587*d[4*i + 1] + 0.114*d[4*i + 2])/255;
      else for (let k = 0; k < 3; k++) out[k*n + i] = d[4*i + k]/255;
    }
    return out;
  }
  async function open(file) {
    const url = URL.createObjectURL(file), img = new Image();
    img.src = url;
    try {
      await img.decode();
      if (!img.naturalWidth || !img.naturalHeight) throw new Error('it tells no size');
      drawing(false);
      take(pixels_of(img, img.naturalWidth, img.naturalHeight), file.name);
    } catch (e) {
      complain(`${file.name} cannot be read as a picture: it is damaged, or of a kind that this browser does not know. Try a PNG or JPEG file.`);
    } finally { URL.revokeObjectURL(url); }
  }
  async function camera() {
    const lens = $('lens'), video = lens.querySelector('video');
    let stream;
    try { stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}}); }
    catch (e) { complain('There is no camera, or the browser keeps it from this page. A picture taken with it can be opened as a file.'); return; }
    video.srcObject = stream;
    lens.showModal();
    lens.onclose = () => stream.getTracks().forEach(track => track.stop());
    $('close').onclick = () => lens.close();
    $('shoot').onclick = () => {
      if (!video.videoWidth) return;
      drawing(false);
      take(pixels_of(video, video.videoWidth, video.videoHeight), 'from the camera');
      lens.close();
    };
    await video.play();
  }
  const pad = make('canvas', {width: W*zoom, height: H*zoom});
  function drawing(on) {  // the first picture becomes a sheet to draw on
    const frame = $('image').querySelector('.frame');
    $('draw').setAttribute('aria-pressed', on);
    $('wipe').hidden = !on;
    $('ink-label').hidden = !on || c.channels !== 3;
    frame.classList.toggle('drawing', on);
    $('image').querySelector('figcaption').textContent = on ? 'Image · draw here' : 'Image';
  }
  function wipe() {
    const g = pad.getContext('2d');
    g.fillStyle = '#000';
    g.fillRect(0, 0, pad.width, pad.height);
    take(pixels_of(pad, pad.width, pad.height), 'your drawing');
  }
  function sheet(frame) {
    let last = null;
    const at = e => { const r = frame.getBoundingClientRect(); return [(e.clientX - r.left)/r.width*pad.width, (e.clientY - r.top)/r.height*pad.height]; };
    const stroke = e => {
      const g = pad.getContext('2d'), to = at(e);
      Object.assign(g, {strokeStyle: c.channels === 3 ? $('ink').value : '#fff', lineWidth: pad.height/12, lineCap: 'round'});
      g.beginPath(); g.moveTo(...last); g.lineTo(...to); g.stroke();
      last = to;
      take(pixels_of(pad, pad.width, pad.height), 'your drawing');
    };
    const on = () => frame.classList.contains('drawing');
    frame.addEventListener('pointerdown', e => { if (on()) { frame.setPointerCapture(e.pointerId); last = at(e); stroke(e); } });
    frame.addEventListener('pointermove', e => { if (last && on()) stroke(e); });
    for (const end of ['pointerup', 'pointercancel']) frame.addEventListener(end, () => { last = null; });
  }
  function own(i) {  // a picture of the page
    const bytes = MAE.decode(data.images[i].pixels);
    drawing(false);
    take(Float32Array.from(bytes, v => v/255), data.images[i].name, i);
  }

  // --- the margin: what to try ---
  function guide() {
    const to = (kind, ratio) => draw_mask(kind, Math.round(ratio*L)), trained = () => choose('model', 0);
    const other = same => data.models.findIndex((m, k) => k > 0 && !m.untrained && same === (m.config.norm_pix_loss === data.models[0].config.norm_pix_loss));
    const [earlier, target] = [other(true), other(false)];
    const list = [
      ['Hide three quarters', 'One word of a sentence is easy to hide; of a picture, much more must go before neighbours no longer give it away. Three quarters of the patches are masked here.', 'section 3, Fig. 5', () => { trained(); to('random', 0.75); }],
      ['The encoder sees the rest', 'Masked patches are not blackened, they are left out: the encoder works on a quarter of the tokens. The attention map of its blocks has nothing to say on masked patches.', 'section 3, Table 1c', () => { to('random', 0.75); choose('block', model(now.model).c.depth - 1); now.look = now.mask.indexOf(0); }],
      ['Mask tokens guess', 'The decoder gets one and the same token for each masked patch, with its position. Touch a masked patch in the attention map: it looks at the visible patches that its guess comes from.', 'section 3, Fig. 1', () => { choose('block', model(now.model).c.depth); now.look = now.mask.indexOf(1); }],
      ['How much can be hidden?', 'Nine of ten patches are masked here. With so little left the guess becomes a typical picture rather than this one. Mask all: that is what the model believes without any evidence. Mask a few: it may do worse than you expect, since it was trained with most of the patches hidden.', 'Fig. 4, Fig. 5', () => to('random', 0.9)],
      ['Where it is hidden matters', 'A large block leaves nothing nearby to continue from: the loss goes up. A grid leaves every patch a visible neighbour. Models trained on grids had an easier task in the paper, and learned less.', 'Fig. 6, Table 1f', () => to('block', 0.5)],
      ['Visible patches look worse', 'The loss counts masked patches only, so nothing taught the model to copy what it sees: compare the visible patches in the reconstruction and in the picture.', 'section 3, Fig. 2', () => { to('random', 0.75); trained(); }],
      ['What training changed', 'The same network before its first step, on the same mask. Then choose other pictures: is the trained one always better?', 'section 4', () => { const k = data.models.findIndex(m => m.untrained); if (k > 0) choose('other', k); }, data.models.some(m => m.untrained)],
      ['As training went on', 'An earlier state of a model of this page. What comes first: the outline, the place, the pattern? Hide the same patches and go through the models in the list below.', 'Fig. 7', () => { trained(); choose('other', earlier); }, earlier > 0],
      ['Another target', 'One of these models predicts pixels, the other pixels normalised patch by patch: each masked patch minus its mean, over its deviation. Brightness and contrast are then not its task, and it spends itself on edges; what is missing is added from the patch itself, unless you choose otherwise below.', 'section 3, Table 1d', () => { trained(); choose('other', target); }, target > 0],
      ['Your own picture', 'Draw one, or open a photograph. The model has seen one kind of picture only: what does it make of yours?', 'section 6', () => { drawing(true); wipe(); draw_mask('random', Math.round(L/2)); }],
    ].filter(step => step[4] !== false);
    const open = k => items.forEach((item, i) => {  // one step's text is shown
      const [button, text] = [item.querySelector('button'), item.querySelector('div')];
      button.setAttribute('aria-expanded', i === k);
      text.hidden = i !== k;
      if (i === k) item.setAttribute('aria-current', 'step'); else item.removeAttribute('aria-current');
    });
    const go = k => {
      open(k);
      list[k][3]();
      refresh();
      const r = $('tiles').getBoundingClientRect();
      if (r.top < 0 || r.bottom > innerHeight) $('tiles').scrollIntoView({block: 'start'});
    };
    const items = list.map(([title, text, paper], k) => {
      const button = make('button', {type: 'button', textContent: title, onclick: () => go(k)}), next = make('button', {type: 'button', className: 'next', textContent: 'Next'});
      next.onclick = () => { go(k + 1); items[k + 1].querySelector('button').focus({preventScroll: true}); };
      return make('li', {}, make('h3', {}, button), make('div', {hidden: true}, make('p', {textContent: text}), make('p', {}, make('span', {className: 'paper', textContent: paper}), ...(k + 1 < list.length ? [next] : []))));
    });
    open(0);
    $('guide').querySelector('ol').append(...items);
  }

  // --- controls ---
  function choose(what, i) {
    now[what] = i;
    $(what).value = i;
    if (what === 'model') fill_blocks();
    for (const id of ['painted2', 'pasted2']) $(id).hidden = now.other < 0;
    $('tiles').classList.toggle('two', now.other >= 0);
    const named = (id, k, title) => { $(id).querySelector('figcaption').textContent = now.other >= 0 ? `${title} · ${data.models[k].name}` : title; };
    named('painted', now.model, 'Reconstruction');
    named('pasted', now.model, 'Pasted');
    if (now.other >= 0) { named('painted2', now.other, 'Reconstruction'); named('pasted2', now.other, 'Pasted'); }
    refresh();
  }
  function fill_blocks() {
    const {c: {depth, decoder_depth}} = model(now.model), last = depth + decoder_depth - 1;
    $('block').replaceChildren(...Array.from({length: last + 1}, (_, i) => make('option', {value: i, textContent: i < depth ? `encoder block ${i + 1}` : `decoder block ${i - depth + 1}`})));
    now.block = Math.min(now.block || last, last);
    $('block').value = now.block;
  }
  function connect() {
    $('controls').onsubmit = e => e.preventDefault();
    $('ratio').max = L;
    $('ratio').oninput = () => { draw_mask(now.kind === 'painted' ? 'random' : now.kind, +$('ratio').value); refresh(); };
    $('kinds').onchange = e => { if (e.target.value === 'painted') now.kind = 'painted'; else draw_mask(e.target.value, count()); refresh(); };
    $('again').onclick = () => { draw_mask(now.kind === 'painted' ? 'random' : now.kind, count()); refresh(); };
    const whole = value => { now.mask = now.mask.map(value); now.kind = 'painted'; refresh(); };
    $('all').onclick = () => whole(() => 1);
    $('none').onclick = () => whole(() => 0);
    $('swap').onclick = () => whole(v => 1 - v);
    const names = data.models.map((m, i) => make('option', {value: i, textContent: m.name}));
    $('model').append(...names);
    $('other').append(make('option', {value: -1, textContent: 'nothing'}), ...names.map(n => n.cloneNode(true)));
    for (const what of ['model', 'other', 'block']) $(what).onchange = () => choose(what, +$(what).value);
    $('honest-label').hidden = !data.models.some(m => m.config.norm_pix_loss);
    $('honest').onchange = () => { now.honest = !!$('honest').value; refresh(); };
    $('invert').onchange = () => { now.inverted = $('invert').checked; take(now.image.map(v => now.inverted ? v : 1 - v), now.name, [...$('strip').children].findIndex(b => b.getAttribute('aria-pressed') === 'true')); };
    $('file').onchange = () => { if ($('file').files[0]) open($('file').files[0]); $('file').value = ''; };
    $('camera').onclick = camera;
    $('draw').onclick = () => { const on = $('draw').getAttribute('aria-pressed') !== 'true'; drawing(on); if (on) wipe(); };
    $('wipe').onclick = wipe;
    const flag = on => e => { e.preventDefault(); document.body.classList.toggle('dropping', on); };
    addEventListener('dragover', flag(true));
    addEventListener('dragleave', flag(false));
    addEventListener('drop', e => { flag(false)(e); if (e.dataTransfer.files[0]) open(e.dataTransfer.files[0]); else complain('Nothing was dropped that is a file: save the picture first, and drop the file.'); });
    addEventListener('paste', e => { if (e.clipboardData.files[0]) open(e.clipboardData.files[0]); });
    const dark = () => document.documentElement.dataset.theme ? document.documentElement.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    const tell = () => { $('theme').textContent = dark() ? 'Light mode' : 'Dark mode'; };
    $('theme').onclick = () => { document.documentElement.dataset.theme = dark() ? 'light' : 'dark'; tell(); };
    tell();
  }
  function begin() {
    document.body.classList.toggle('bare', location.hash === '#bare');  // for a lesson's frame
    connect();
    fill_blocks();
    $('strip').append(...data.images.map((image, i) => {
      const button = make('button', {type: 'button', title: image.name, onclick: () => own(i)}, make('canvas'));
      button.setAttribute('aria-label', image.name);
      button.id = `own${i}`;
      return button;
    }));
    data.images.forEach((image, i) => paint(`own${i}`, Float32Array.from(MAE.decode(image.pixels), v => v/255)));
    guide();
    for (const id of ['image', 'painted', 'pasted', 'look']) looks($(id).querySelector('.frame'));
    strokes($('masked').querySelector('.frame'));
    sheet($('image').querySelector('.frame'));
    for (const [id, what] of [['masked', 'Paint the mask: arrow keys move, the space bar masks a patch or shows it'], ['look', 'Choose a patch to look from: arrow keys move']]) {
      const frame = $(id).querySelector('.frame');
      frame.tabIndex = 0;
      frame.setAttribute('role', 'application');
      frame.setAttribute('aria-label', what);
    }
    const alts = {painted: 'The guess for every patch', pasted: 'The guesses beside the visible patches', painted2: 'The guess of the second model', pasted2: 'Its guesses beside the visible patches', losses: 'Loss of each masked patch: the redder, the higher'};
    for (const canvas of document.querySelectorAll('#tiles canvas')) canvas.setAttribute('role', 'img');
    for (const [id, text] of Object.entries(alts)) $(id).querySelector('canvas').setAttribute('aria-label', text);
    own(0);
    choose('model', 0);
    show();
    document.querySelectorAll('#tiles canvas').forEach(canvas => { canvas.hidden = false; });
    document.querySelectorAll('#tiles img').forEach(img => img.remove());
    for (const id of ['controls', 'guide', 'look', 'losses', 'numbers', 'theme']) $(id).hidden = false;
    document.documentElement.dataset.ready = 'yes';
  }
  setTimeout(begin, 30);  // the still picture is painted first
  return {now, show};
})();
