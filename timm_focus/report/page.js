'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const make = (tag, attributes = {}, text) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const digits = (value) => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString('en')
    : String(Number(value.toPrecision(4)));
  const svg = (tag, attributes) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  // charts: show the values under the pointer, or where the arrow keys go

  document.querySelectorAll('[data-chart]').forEach((plot) => {
    const chart = data.charts[plot.dataset.chart];
    const picture = plot.querySelector('svg');
    const steps = [...new Set(chart.series.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
    const place = (x) => chart.left + (x - chart.x0) / (chart.x1 - chart.x0) * (chart.right - chart.left);
    const cursor = svg('line', {class: 'cursor', y1: chart.top, y2: chart.bottom, visibility: 'hidden'});
    const tip = make('div', {class: 'tip', 'aria-live': 'polite', hidden: ''});
    picture.append(cursor);
    plot.append(tip);
    plot.tabIndex = 0;
    plot.setAttribute('role', 'group');
    plot.setAttribute('aria-label', 'Chart: use the arrow keys to read its values');
    let at = -1;
    const hide = () => { tip.hidden = true; cursor.setAttribute('visibility', 'hidden'); at = -1; };
    const show = (step) => {
      at = Math.min(Math.max(step, 0), steps.length - 1);
      const x = steps[at];
      cursor.setAttribute('x1', place(x));
      cursor.setAttribute('x2', place(x));
      cursor.setAttribute('visibility', 'visible');
      tip.replaceChildren(make('div', {}, `${chart.x} ${digits(x)}`));
      for (const line of chart.series) {
        const point = line.points.find(([place]) => place === x);
        if (point) tip.append(make('div', {}, `${line.label}: ${digits(point[1])}`));
      }
      tip.hidden = false;
      const right = place(x) > (chart.left + chart.right) / 2;
      tip.style.left = right ? '' : `${place(x) / picture.viewBox.baseVal.width * 100 + 2}%`;
      tip.style.right = right ? `${100 - place(x) / picture.viewBox.baseVal.width * 100 + 2}%` : '';
    };
    plot.addEventListener('pointermove', (event) => {
      const box = picture.getBoundingClientRect();
      const x = chart.x0 + ((event.clientX - box.left) / box.width * picture.viewBox.baseVal.width - chart.left)
        / (chart.right - chart.left) * (chart.x1 - chart.x0);
      let best = 0;
      steps.forEach((step, i) => { if (Math.abs(step - x) < Math.abs(steps[best] - x)) best = i; });
      show(best);
    });
    plot.addEventListener('pointerleave', hide);
    plot.addEventListener('blur', hide);
    plot.addEventListener('keydown', (event) => {
      const to = {ArrowLeft: at < 0 ? steps.length - 1 : at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1}[event.key];
      if (event.key === 'Escape') hide();
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  });

  // tables that sort

  document.querySelectorAll('table.sortable').forEach((table) => {
    const heads = [...table.querySelectorAll('thead th')];
    heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
      const text = head.querySelector('button').dataset.sort === 'text';
      const up = head.getAttribute('aria-sort') === (text ? null : 'descending')
        || (text && head.getAttribute('aria-sort') !== 'ascending');
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const value = (row) => {
        const cell = row.children[column];
        return text ? cell.textContent : Number(cell.dataset.value ?? cell.textContent);
      };
      const sorted = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return (text ? x.localeCompare(y) : x - y) * (up ? 1 : -1);
      });
      table.tBodies[0].append(...sorted);
    }));
  });

  // the gallery

  const cards = document.getElementById('cards');
  if (!cards) return;
  const PAGE = 24;
  const byClass = document.getElementById('filter-class');
  const byRight = document.getElementById('filter-right');
  const byTaken = document.getElementById('filter-taken');
  const name = (k) => data.classes[k] ?? String(k);
  const color = (value) => {
    const at = value * (data.colors.length - 1);
    const low = Math.min(Math.floor(at), data.colors.length - 2);
    return data.colors[low].map((c, i) => c + (data.colors[low + 1][i] - c) * (at - low));
  };
  const table = Array.from({length: 256}, (_, i) => color(i / 255));

  const key = document.getElementById('map-key').getContext('2d');
  for (let x = 0; x < 128; x++) {
    key.fillStyle = `rgb(${table[x * 2].map(Math.round).join(',')})`;
    key.fillRect(x, 0, 1, 8);
  }

  // enlarge a map to the size of a picture as the network enlarges it: by interpolation or by the nearest place
  const enlarged = (run, width, height, smooth) => {
    const values = Uint8Array.from(atob(run.m), (c) => c.charCodeAt(0));
    const out = new Float32Array(width * height);
    for (let y = 0; y < height; y++) {
      const v = smooth ? Math.min(Math.max((y + .5) * run.h / height - .5, 0), run.h - 1) : Math.floor(y * run.h / height);
      const top = Math.floor(v), below = Math.min(top + 1, run.h - 1), fy = v - top;
      for (let x = 0; x < width; x++) {
        const u = smooth ? Math.min(Math.max((x + .5) * run.w / width - .5, 0), run.w - 1) : Math.floor(x * run.w / width);
        const left = Math.floor(u), right = Math.min(left + 1, run.w - 1), fx = u - left;
        out[y * width + x] = ((values[top * run.w + left] * (1 - fx) + values[top * run.w + right] * fx) * (1 - fy)
          + (values[below * run.w + left] * (1 - fx) + values[below * run.w + right] * fx) * fy) / 255;
      }
    }
    return out;
  };
  const painted = (width, height, at) => {
    const canvas = make('canvas', {width, height});
    const context = canvas.getContext('2d');
    const image = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) image.data.set(at(i), 4 * i);
    context.putImageData(image, 0, 0);
    return canvas;
  };

  const answer = (words, k, p, truth) => {
    const line = make('p', {class: 'says'});
    line.append(words, make('b', {class: k === truth ? 'right' : 'wrong'}, `${name(k)} ${k === truth ? '✓' : '✗'}`));
    if (p !== undefined) line.append(` ${(100 * p).toFixed(0)} %`);
    return line;
  };

  const drawRun = (block, image, run, r, cut) => {
    const map = data.maps[r];
    const picture = make('div', {class: 'picture'});
    const original = make('img', {alt: `${name(image.t)}: ${image.n}`});
    original.src = image.v[map.view];
    picture.append(original);
    block.append(picture);
    if (run.m === undefined) return;
    const kept = make('div', {class: 'picture'});
    block.append(kept);
    original.decode().then(() => {
      const [width, height] = [original.naturalWidth, original.naturalHeight];
      const values = enlarged(run, width, height, map.smooth);
      const overlay = painted(width, height, (i) => [...table[Math.round(values[i] * 255)], 255]);
      // draw the map over the image, as the pictures of timm-focus explain do
      const canvas = make('canvas', {class: 'map', width, height, role: 'img', 'aria-label': `Map of ${data.runs[r]}`});
      const context = canvas.getContext('2d');
      context.drawImage(original, 0, 0);
      context.globalAlpha = data.alpha;
      context.drawImage(overlay, 0, 0);
      original.after(canvas, make('span', {class: 'edge'}));
      if (map.threshold === null) {
        kept.remove();
        return;
      }
      const rest = make('canvas', {width, height, role: 'img', 'aria-label': `What ${data.runs[r]} keeps`});
      const drawn = rest.getContext('2d');
      drawn.drawImage(original, 0, 0);
      drawn.drawImage(painted(width, height, (i) => values[i] >= map.threshold ? [...map.mean, 255] : [0, 0, 0, 0]), 0, 0);
      kept.append(rest);
    });
    const slider = make('input', {
      type: 'range', min: 0, max: 100, value: cut, 'aria-label': `From the image to the map of ${data.runs[r]}, ${image.n}`});
    picture.append(slider);
    const captions = [make('p', {class: 'caption'}, 'image | map'), make('p', {class: 'caption'}, map.threshold === null
      ? 'erased at random in training' : `kept, ${(100 * run.k).toFixed(0)} %`)];
    block.append(...captions);
  };

  const card = (image) => {
    const item = make('li', {class: 'card'});
    item.append(make('h3', {}, name(image.t)), make('p', {class: 'file'}, image.n));
    image.r.forEach((run, r) => {
      const block = make('div', {class: 'run'});
      block.append(answer(`${data.runs[r]}: `, run.p, run.q, image.t));
      drawRun(block, image, run, r, 50);
      if (run.a !== undefined) block.append(answer('from what is kept: ', run.a, run.b, image.t));
      item.append(block);
    });
    const sliders = item.querySelectorAll('input[type=range]');
    item.addEventListener('input', (event) => {
      for (const slider of sliders) {
        slider.value = event.target.value;
        slider.parentElement.style.setProperty('--cut', `${event.target.value}%`);
      }
    });
    return item;
  };

  const choices = data.runs.length > 1 ? [['mixed', 'one right, another wrong'], ['', 'any']] : [['', 'any']];
  data.runs.forEach((run, r) => data.runs.forEach((other, s) => {
    if (r !== s && (r === 0 || s === 0 || data.runs.length < 4)) choices.push([`${r}>${s}`, `${run} right, ${other} wrong`]);
  }));
  if (data.runs.length > 1) choices.push(['all', 'all right'], ['none', 'none right']);
  else choices.push(['all', 'right'], ['none', 'wrong']);
  choices.forEach(([value, words]) => byRight.append(make('option', {value}, words)));
  [...new Set(data.images.map((image) => image.t))].sort((a, b) => name(a).localeCompare(name(b)))
    .forEach((k) => byClass.append(make('option', {value: k}, name(k))));

  let taken = null, found = [], drawn = 0;
  const fits = (image) => {
    const right = image.r.map((run) => run.p === image.t);
    if (byClass.value !== '' && image.t !== Number(byClass.value)) return false;
    if (taken !== null && !image.r.some((run) => run.p === taken)) return false;
    if (byRight.value === 'mixed') return right.some(Boolean) && !right.every(Boolean);
    if (byRight.value === 'all') return right.every(Boolean);
    if (byRight.value === 'none') return !right.some(Boolean);
    if (byRight.value) {
      const [r, s] = byRight.value.split('>').map(Number);
      return right[r] && !right[s];
    }
    return true;
  };
  const more = () => {
    const next = found.slice(drawn, drawn + PAGE);
    cards.append(...next.map(card));
    drawn += next.length;
    document.getElementById('more').hidden = drawn >= found.length;
  };
  const update = () => {
    found = data.images.filter(fits);
    drawn = 0;
    cards.replaceChildren();
    byTaken.hidden = taken === null;
    byTaken.textContent = taken === null ? '' : `taken for ${name(taken)} ×`;
    document.getElementById('gallery-count').textContent = found.length
      ? `${found.length} of the ${data.images.length} images in this page.`
      : `None of the ${data.images.length} images in this page.`;
    more();
  };
  document.getElementById('more').addEventListener('click', more);
  byClass.addEventListener('change', () => { taken = null; update(); });
  byRight.addEventListener('change', update);
  byTaken.addEventListener('click', () => { taken = null; update(); byClass.focus(); });
  document.getElementById('filters').addEventListener('submit', (event) => event.preventDefault());
  document.getElementById('filter-none').addEventListener('click', () => {
    [byClass.value, byRight.value, taken] = ['', '', null];
    update();
  });
  document.querySelectorAll('button[data-class]').forEach((button) => button.addEventListener('click', () => {
    if (![...byClass.options].some((option) => option.value === button.dataset.class)) {
      byClass.append(make('option', {value: button.dataset.class}, name(button.dataset.class)));
    }
    byClass.value = button.dataset.class;
    byRight.value = '';
    taken = button.dataset.taken === undefined ? null : Number(button.dataset.taken);
    update();
    document.getElementById('gallery').scrollIntoView();
    byClass.focus({preventScroll: true});
  }));
  if (!data.images.some(fits)) byRight.value = '';
  update();
})();
