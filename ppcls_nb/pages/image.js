// From an image file to the input of a network, as OpenCV and the recipe do it in Python: decode, resize, crop, and
// look up the normalized value of each level.
const ONE = 2048;                           // OpenCV's weights of 8-bit pixels are whole numbers that add up to this
const STRIP = 128;                          // rows of the decoded picture that are in memory at once

// Python's round: halves go to the even neighbour.
export function roundEven(x) {
  const low = Math.floor(x);
  return x - low === .5 ? low + low%2 : Math.round(x);
}

function cubicWeights(t) {
  const a = -.75, near = x => ((a + 2)*x - (a + 3))*x*x + 1;
  const first = ((a*(t + 1) - 5*a)*(t + 1) + 8*a)*(t + 1) - 4*a, second = near(t), third = near(1 - t);
  return [first, second, third, 1 - first - second - third];
}

function lanczosWeights(t) {
  if (t < 1.2e-7) return [0, 0, 0, 1, 0, 0, 0, 0];
  const weights = [];
  for (let k = 0; k < 8; k++) {
    const x = Math.PI*(t + 3 - k);          // sin(x)·sin(x/4) divided by x², without what all eight have in common
    weights.push((k%2 ? -1 : 1)*Math.sin(x/4)/(x*x));
  }
  const sum = weights.reduce((a, b) => a + b);
  return weights.map(w => w/sum);
}

// For one axis: which pixels of the source make pixel `d` of the result, {first, weights}.
const TAPS = {
  0: (d, scale, source) => ({first: Math.min(Math.floor(d*scale), source - 1), weights: [ONE]}),
  1: (d, scale, source) => {
    const x = Math.fround((d + .5)*scale - .5), first = Math.floor(x), t = Math.fround(x - first);
    if (first < 0 || first >= source - 1) return {first: first < 0 ? 0 : source - 1, weights: [ONE, 0]};
    return {first, weights: [1 - t, t].map(w => roundEven(w*ONE))};
  },
  2: (d, scale) => {
    const x = Math.fround((d + .5)*scale - .5), first = Math.floor(x);
    return {first: first - 1, weights: cubicWeights(Math.fround(x - first)).map(w => roundEven(w*ONE))};
  },
  3: (d, scale, source) => {                // the mean of an area
    const from = d*scale, to = from + scale, cell = Math.min(scale, source - from);
    const last = Math.min(Math.floor(to), source - 1), whole = Math.min(Math.ceil(from), last), weights = [];
    const first = whole - from > 1e-3 ? whole - 1 : whole;
    if (first < whole) weights.push((whole - from)/cell);
    for (let i = whole; i < last; i++) weights.push(1/cell);
    if (to - last > 1e-3) weights.push(Math.min(to - last, 1, cell)/cell);
    return {first, weights: weights.map(Math.fround)};
  },
  4: (d, scale) => {
    const x = Math.fround((d + .5)*scale - .5), first = Math.floor(x);
    return {first: first - 3, weights: lanczosWeights(Math.fround(x - first)).map(w => roundEven(w*ONE))};
  },
  exactCubic: (d, scale) => {               // OpenCV with Intel's library IPP
    const x = (d + .5)*scale - .5, first = Math.floor(x);
    return {first: first - 1, weights: cubicWeights(x - first).map(w => w*ONE)};
  },
  blocks: (d, scale) => ({first: d*Math.round(scale), weights: Array(Math.round(scale)).fill(1)}),
  enlargedArea: (d, scale, source) => {     // what OpenCV does where there is no area to average
    const first = Math.floor(d*scale), t = Math.fround(d + 1 - (first + 1)/scale);
    if (first >= source - 1) return {first: source - 1, weights: [ONE, 0]};
    const weight = t <= 0 ? 0 : t - Math.floor(t);
    return {first, weights: [1 - weight, weight].map(w => roundEven(w*ONE))};
  }};

function axis(kind, source, target, start, count) {
  const taps = [], scale = 1/(target/source);          // divided twice, as OpenCV does
  for (let d = start; d < start + count; d++) {
    const {first, weights} = TAPS[kind](d, scale, source);
    taps.push(weights.map((weight, k) => ({at: Math.max(0, Math.min(source - 1, first + k)), weight}))
      .filter(tap => tap.weight));
  }
  return taps;
}

// {size: [w, h] after resizing, box: [x, y, w, h] of it that the network sees} for a picture of this size.
export function geometry(width, height, {resize, crop}) {
  let size = [width, height];
  if (resize?.size) size = resize.size;
  if (resize?.short) {
    const k = resize.short/Math.min(width, height);
    size = [width, height].map(n => Math.max(1, roundEven(n*k)));
  }
  const [w, h] = crop ?? size;
  if (w > size[0] || h > size[1]) throw new Error(`A picture of ${size.join(' × ')} pixels; expected ${w} × ${h}.`);
  return {size, box: [Math.floor((size[0] - w)/2), Math.floor((size[1] - h)/2), w, h]};
}

// Rows of a decoded picture as RGBA bytes, read from top to bottom. `transparent`: whether a pixel of them was.
export class Rows {
  constructor(bitmap) {
    this.bitmap = bitmap;
    this.width = bitmap.width;
    this.height = bitmap.height;
    this.transparent = false;
    const canvas = new OffscreenCanvas(bitmap.width, Math.min(STRIP, bitmap.height));
    this.context = canvas.getContext('2d', {willReadFrequently: true, colorSpace: 'srgb'});
    this.context.globalCompositeOperation = 'copy';
    this.start = this.end = 0;
  }
  row(y) {
    if (y < this.start || y >= this.end) {
      const count = Math.min(STRIP, this.height - y);
      this.context.drawImage(this.bitmap, 0, -y);
      this.strip = this.context.getImageData(0, 0, this.width, count).data;
      this.start = y;
      this.end = y + count;
      for (let i = 3; i < this.strip.length && !this.transparent; i += 4) this.transparent = this.strip[i] < 255;
    }
    return this.strip.subarray(4*this.width*(y - this.start), 4*this.width*(y - this.start + 1));
  }
}

function filterRow(row, taps, level) {
  const single = level === 'mean', result = new (single ? Float32Array : Float64Array)(3*taps.length);
  taps.forEach((pixel, x) => {
    for (const {at, weight} of pixel) {
      for (let c = 0; c < 3; c++) {
        const term = row[4*at + c]*weight;
        result[3*x + c] += single ? Math.fround(term) : term;
      }
    }
  });
  return result;
}

// The level of a pixel from `values`, one of each row that it is made of, and their weights, as OpenCV rounds it.
const LEVELS = {
  sum: (values, weights) => {
    let sum = 0;
    for (let k = 0; k < values.length; k++) sum += values[k]*weights[k];
    return Math.floor((sum + ONE*ONE/2)/(ONE*ONE));
  },
  linear: (values, weights) => {            // in two steps
    let sum = 0;
    for (let k = 0; k < values.length; k++) sum += ((values[k] >> 4)*weights[k]) >> 16;
    return (sum + 2) >> 2;
  },
  mean: (values, weights) => {              // with numbers of 32 bits
    let sum = 0;
    for (let k = 0; k < values.length; k++) sum = Math.fround(sum + Math.fround(values[k]*weights[k]));
    return roundEven(sum);
  },
  blocks: (values, weights, area) => {
    const sum = values.reduce((a, b) => a + b);
    return area === 4 ? (sum + 2) >> 2 : roundEven(Math.fround(sum*Math.fround(1/area)));
  }};

// How a picture is resized by `scale` = [across, down]: {taps, level}, the names of two functions above.
function method({interpolation = 0, exact} = {}, scale) {
  if (scale[0] === 1 && scale[1] === 1) return {taps: 0, level: 'sum'};
  if (interpolation === 2 && exact) return {taps: 'exactCubic', level: 'sum'};
  if (interpolation !== 3) return {taps: interpolation, level: interpolation === 1 ? 'linear' : 'sum'};
  if (scale.some(s => s < 1)) return {taps: 'enlargedArea', level: 'linear'};
  if (scale.every(s => Number.isInteger(s))) return {taps: 'blocks', level: 'blocks'};
  return {taps: 3, level: 'mean'};
}

// The levels that the network sees, RGB bytes (h, w, 3). `rows`: {width, height, row(y)}, rows of RGBA bytes.
export function resample(rows, spec) {
  const {size, box: [left, top, w, h]} = geometry(rows.width, rows.height, spec);
  const scale = [rows.width/size[0], rows.height/size[1]], {taps, level} = method(spec.resize ?? {}, scale);
  const across = axis(taps, rows.width, size[0], left, w), down = axis(taps, rows.height, size[1], top, h);
  const pixels = new Uint8ClampedArray(3*w*h), filtered = new Map();
  down.forEach((pixel, y) => {
    for (const key of filtered.keys()) if (key < pixel[0].at) filtered.delete(key);
    for (const {at} of pixel) if (!filtered.has(at)) filtered.set(at, filterRow(rows.row(at), across, level));
    const lines = pixel.map(tap => filtered.get(tap.at)), weights = pixel.map(tap => tap.weight);
    for (let i = 0; i < 3*w; i++) {           // the array clips at 0 and 255
      pixels[3*w*y + i] = LEVELS[level](lines.map(line => line[i]), weights, scale[0]*scale[1]);
    }
  });
  return pixels;
}

// Levels (h, w, 3) → float32 (3, h, w), by the table `levels`: three channels of 256 values. `bgr`: blue comes first.
export function normalize(pixels, {levels, bgr}) {
  const area = pixels.length/3, values = new Float32Array(pixels.length);
  for (let c = 0; c < 3; c++) {
    const source = bgr ? 2 - c : c;
    for (let i = 0; i < area; i++) values[c*area + i] = levels[c][pixels[3*i + source]];
  }
  return values;
}

// A file that was cut off would be half grey; Python refuses it, and so does this page.
export function isComplete(bytes) {
  const has = (...end) => {
    for (let i = bytes.length - end.length; i > 1; i--) if (end.every((byte, k) => bytes[i + k] === byte)) return true;
    return false;
  };
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return has(0xff, 0xd9);
  if (bytes[0] === 0x89 && bytes[1] === 0x50) return has(0x49, 0x45, 0x4e, 0x44);
  return true;
}

// A file → {values: float32 (3, h, w), transparent}; an Error with a sentence for one that is no picture.
export async function prepare(blob, spec) {
  if (!isComplete(new Uint8Array(await blob.arrayBuffer()))) throw new Error('The file is incomplete.');
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none'});
  } catch {
    throw new Error('Not a picture that this browser can decode, or a damaged one.');
  }
  try {
    const rows = new Rows(bitmap), values = normalize(resample(rows, spec), spec);
    return {values, transparent: rows.transparent};
  } finally {
    bitmap.close();
  }
}
