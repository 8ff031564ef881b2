// The page around model.js: controls, playback while the sound is generated, and a player for each sound.
import { generate, load } from "./model.js";

const form = document.getElementById("form"), clips = document.getElementById("clips");
const bar = document.getElementById("progress"), say = document.getElementById("state");

function field(name, input) {
  const label = Object.assign(document.createElement("label"), { textContent: name, htmlFor: input.id = `input-${name}` });
  form.insertBefore(label, say);
  form.insertBefore(input, say);
  return input;
}
const number = (value, attributes) => Object.assign(document.createElement("input"), { type: "number", value, ...attributes });

function choice({ values }) {
  const select = document.createElement("select");
  select.add(new Option("any", ""));
  values.forEach((value, place) => select.add(new Option(value, place)));
  return select;
}

try {
  const model = await load(), { about } = model, asked = {};
  for (const [name, part] of Object.entries(about.conditions)) {
    if (part.kind === "label") asked[name] = field(name, choice(part));
    if ("low" in part) asked[name] = field(name, number("", { min: part.low, max: part.high, step: "any" }));
  }
  const seconds = field("seconds", number(4, { min: 0.1, max: 60, step: "any" }));
  const temperature = field("temperature", number(about.sampling.temperature, { min: 0, max: 2, step: 0.05 }));
  const seed = field("seed", number(0, { min: 0, max: 4294967295 }));
  const button = form.insertBefore(Object.assign(document.createElement("button"), { textContent: "Generate" }), say);
  say.textContent = "";
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    const conditions = Object.fromEntries(Object.entries(asked).map(([name, { value }]) => [name, value === "" ? null : +value]));
    const words = Object.entries(asked).map(([, input]) => input.selectedOptions?.[0].text ?? input.value);
    try {
      await play(model, { seconds: +seconds.value, temperature: +temperature.value, seed: +seed.value, conditions }, words);
      seed.value = +seed.value + 1;
    } catch (error) {
      complain(error);
    }
    button.disabled = false;
  });
} catch (error) {
  complain(error);
}

function complain(error) {
  say.className = "bad";
  say.textContent = error.message;
}

async function play(model, options, words) {
  const rate = model.about.sample_rate, context = new AudioContext({ sampleRate: rate }), pieces = [];
  const begun = performance.now();
  let time = 0;
  bar.hidden = false;
  for await (const { wav, frames, count } of generate(model, options)) {
    if (frames) {
      Object.assign(bar, { max: count, value: frames });
      if (frames % 4 === 0) await new Promise((done) => setTimeout(done)); // lets the page be drawn
      continue;
    }
    pieces.push(wav);
    const buffer = context.createBuffer(1, wav.length, rate), source = context.createBufferSource();
    buffer.copyToChannel(wav, 0);
    source.buffer = buffer;
    source.connect(context.destination);
    time = Math.max(time, context.currentTime + 0.05);
    source.start(time);
    time += buffer.duration;
  }
  bar.hidden = true;
  const taken = (performance.now() - begun) / 1000, sound = new Float32Array(await new Blob(pieces).arrayBuffer());
  const speed = sound.length / rate / taken;
  say.textContent = `${(sound.length / rate).toFixed(1)} s of sound in ${taken.toFixed(1)} s: ${speed.toFixed(2)} times real time`;
  const clip = document.createElement("div"), audio = document.createElement("audio");
  Object.assign(audio, { controls: true, src: URL.createObjectURL(new Blob([wavFile(sound, rate)], { type: "audio/wav" })) });
  const about = [`seed ${options.seed}`, `temperature ${options.temperature}`, ...words.filter(Boolean)].join(", ");
  clip.className = "clip";
  clip.append(audio, Object.assign(document.createElement("small"), { textContent: about }));
  clips.prepend(clip);
  setTimeout(() => context.close(), 1000 * Math.max(0, time - context.currentTime) + 500);
}

// A WAV file of 16 bits.
function wavFile(sound, rate) {
  const file = new DataView(new ArrayBuffer(44 + 2 * sound.length));
  [0x52494646, 36 + 2 * sound.length, 0x57415645, 0x666d7420, 16, 0x10001, rate, 2 * rate, 0x100002, 0x64617461, 2 * sound.length]
    .forEach((word, i) => file.setUint32(4 * i, word, ![0, 2, 3, 9].includes(i)));
  sound.forEach((value, i) => file.setInt16(44 + 2 * i, Math.round(32767 * value), true));
  return file.buffer;
}
