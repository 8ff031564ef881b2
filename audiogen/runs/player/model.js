// Generates sound with the graphs that `audiogen export` writes. It needs onnxruntime-web in ort/ and nothing else.
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // several need headers that not every web server sends

const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

export async function load() {
  const answer = await fetch("export.json");
  if (!answer.ok) throw new Error("export.json is not there: open this page through a web server, in the folder of the export");
  const about = await answer.json(), sessions = {};
  for (const [name, graph] of Object.entries(about.graphs)) {
    if (name !== "encode") sessions[name] = await ort.InferenceSession.create(graph.file);
  }
  return { about, sessions };
}

// Yields what is new: {frames: done so far}, or {wav: Float32Array}. Options: seconds, seed, temperature, conditions by
// name (numbers; null is "not given").
export async function* generate({ about, sessions }, { seconds, seed, temperature, conditions = {} }) {
  const count = Math.max(1, Math.ceil(Math.round(seconds * about.sample_rate) / about.hop_length));
  const { stride, offsets } = about.pattern, { channels, codebook_size: hole } = about, codes = hole !== null;
  const steps = stride * (count - 1) + Math.max(...offsets) + 1;
  const random = uniforms(seed), x = new (codes ? BigInt64Array : Float32Array)(channels * count);
  const decoder = decoding({ about, sessions }, x, seconds, count, random);
  let previous = x.slice(0, channels), state = start(about.graphs.step);
  for (let step = 0; step < steps; step++) {
    const frame = Math.floor(step / stride);
    const feeds = { ...state, step: tensor("int64", [BigInt(step)], [1]) };
    feeds.previous = tensor(codes ? "int64" : "float32", previous, [1, channels, 1]);
    if (sessions.conditions) feeds.added = (await sessions.conditions.run(values(about, conditions, frame, count))).added;
    const inputs = about.graphs.step.inputs;
    if (inputs.noise) feeds.noise = tensor("float32", normals(random, inputs.noise.shape[1]), inputs.noise.shape);
    if (inputs.component) feeds.component = tensor("float32", [random()], [1, 1]);
    if (inputs.temperature) feeds.temperature = tensor("float32", [temperature], [1]);
    const made = await sessions.step.run(used(feeds, sessions.step));
    state = next(about.graphs.step, made);
    if (codes) {
      for (let k = 0; k < channels; k++) { // row k of frame t stands at step offsets[k] + stride t
        const t = (step - offsets[k]) / stride, logits = made.logits.data.subarray(k * hole, (k + 1) * hole);
        const here = Number.isInteger(t) && t >= 0 && t < count;
        previous[k] = BigInt(here ? draw(logits, { ...about.sampling, temperature }, random()) : hole);
        if (here) x[k * count + t] = previous[k];
      }
    } else {
      previous = made.frame.data.slice();
      for (let k = 0; k < channels; k++) x[k * count + step] = previous[k];
    }
    yield { frames: Math.min(count, frame + 1), count };
    yield* decoder(Math.floor((step + 1 - Math.max(...offsets) - 1) / stride) + 1);
  }
}

// A function of the number of frames that are complete; it yields the sound that can be decoded by then.
function decoding({ about, sessions }, x, seconds, count, random) {
  const graph = about.graphs.decode, { channels } = about, type = graph.inputs.x.dtype;
  let begin = 0, state = start(graph), left = Math.round(seconds * about.sample_rate);
  const cut = (from, length) => { // the last frame is repeated after the end
    const part = new ARRAYS[type](channels * length);
    for (let k = 0; k < channels; k++)
      for (let t = 0; t < length; t++) part[k * length + t] = x[k * count + Math.min(from + t, count - 1)];
    return tensor(type, part, [1, channels, length]);
  };
  return async function* (complete) {
    const { frames = count, ahead = 0 } = graph;
    while (begin < count && complete >= Math.min(count, begin + frames + ahead)) {
      const feeds = { ...state, x: cut(begin, frames + ahead) }, noise = graph.inputs.noise;
      if (noise) feeds.noise = tensor("float32", Float32Array.from({ length: noise.shape[0] * noise.shape[1] }, random), noise.shape);
      const made = await sessions.decode.run(used(feeds, sessions.decode));
      state = next(graph, made);
      begin += frames;
      const wav = made.wav.data.slice(0, left).map((value) => Math.max(-1, Math.min(1, value)));
      left -= wav.length;
      yield { wav };
    }
  };
}

function values(about, given, frame, count) {
  const feeds = {};
  for (const [name, { dtype, shape }] of Object.entries(about.graphs.conditions.inputs)) {
    const whole = about.conditions[name].kind === "position" && given[name] !== null;
    const value = whole ? [frame, count - 1 - frame] : new Array(shape[1]).fill(given[name] ?? NaN);
    feeds[name] = tensor(dtype, value, shape);
  }
  return feeds;
}

const tensor = (type, data, shape) => new ort.Tensor(type, ARRAYS[type].from(data), shape);

// The state before the first call: zeros.
const start = (graph) => Object.fromEntries(Object.keys(graph.state).map((name) => {
  const { dtype, shape } = graph.inputs[name], size = shape.reduce((a, b) => a * b, 1);
  return [name, new ort.Tensor(dtype, new ARRAYS[dtype](size), shape)];
}));
const next = (graph, made) => Object.fromEntries(Object.entries(graph.state).map(([name, follows]) => [name, made[follows]]));
// Inputs that a graph does not use are left out of it.
const used = (feeds, session) => Object.fromEntries(session.inputNames.map((name) => [name, feeds[name]]));

// Draws a code: filters as in audiogen's Sampling, then the inverse of the cumulative distribution.
export function draw(logits, { temperature, top_k, top_p, min_p }, uniform) {
  const ranked = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
  if (temperature === 0) return ranked[0];
  const most = logits[ranked[0]], p = new Float64Array(logits.length);
  const candidates = ranked.slice(0, top_k ?? ranked.length);
  let total = 0, before = 0, kept = 0;
  for (const code of candidates) total += p[code] = Math.exp((logits[code] - most) / temperature);
  for (const code of candidates) {
    const mass = p[code];
    if (before >= (top_p ?? 2) * total || mass < (min_p ?? 0)) p[code] = 0; // that of the most probable one is 1
    before += mass;
    kept += p[code];
  }
  let sum = 0;
  const threshold = uniform * kept;
  for (let code = 0; code < p.length; code++) if ((sum += p[code]) > threshold) return code;
  return ranked[0];
}

// Uniform numbers in (0, 1) that depend on the seed alone (mulberry32).
export function uniforms(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
}

// Standard normal numbers (Box and Muller 1958).
export function normals(random, count) {
  const numbers = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(random())), angle = 2 * Math.PI * random();
    numbers[i] = radius * Math.cos(angle);
    if (i + 1 < count) numbers[i + 1] = radius * Math.sin(angle);
  }
  return numbers;
}
