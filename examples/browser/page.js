// The page: takes sound, shows its codes, plays what comes back. The codec is in codec.js.
// In the address: ?models=FOLDER, audio=URL of a clip, bandwidth=KBPS for one rate alone, threads=N, seconds=N of the longest clip.

import { Codec } from "./codec.js";

const query = new URLSearchParams(location.search);
const models = query.get("models") ?? "models";
const longest = Number(query.get("seconds") ?? 60);
const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
let codec, recorder;

function say(text, share) {
  if (at.status.textContent !== text) at.status.textContent = text; // a screen reader says each change
  at.progress.hidden = !text;
  if (share) at.progress.value = share;
  else at.progress.removeAttribute("value");
}

/** Runs a task with all inputs off, and shows what it throws. */
async function run(task) {
  const focused = document.activeElement; // which a browser takes from what is disabled
  at.record.disabled = at.file.disabled = true;
  at.error.textContent = "";
  try {
    await task();
  } catch (error) {
    at.error.textContent = error.message ?? error;
  }
  say("");
  at.record.disabled = at.file.disabled = !codec;
  if (document.activeElement === document.body) focused.focus();
}

async function load() {
  const ort = await import("./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs").catch(() => {
    throw new Error("onnxruntime-web is not here. Run npm install in the folder of this page, then reload.");
  });
  ort.env.wasm.proxy = true; // a worker computes, and the page stays alive
  ort.env.wasm.numThreads = Number(query.get("threads") ?? 0); // 0: its choice, which is 1 without the headers of serve.py
  codec = await Codec.load(ort, models, (file, share) => say(`Loading ${file}`, share)).catch((error) => {
    if (error.status !== 404) throw error;
    throw new Error(`No model in ${models}/. Write one with: encodec-fast export facebook/encodec_24khz --out examples/browser/${models}`);
  });
  window.encodec = { codec }; // for the browser's console, as is what a clip adds
  const facts = [codec.metadata.model_id, `${codec.rate / 1000} kHz`, ["mono", "stereo"][codec.channels - 1], `${ort.env.wasm.numThreads} threads`];
  at.model.textContent = facts.filter(Boolean).join(" · ").replace(" 1 threads", " 1 thread");
}

/** Returns the samples of a file at the model's rate, in its channels. */
async function read(blob, name) {
  if (!blob.size) throw new Error(`${name} is empty.`);
  if (blob.size > 2 ** 28) throw new Error(`${name} is larger than 256 MB. Cut it first.`);
  const context = (samples) => new OfflineAudioContext(codec.channels, samples, codec.rate);
  const buffer = await context(1).decodeAudioData(await blob.arrayBuffer()).catch(() => {
    throw new Error(`${name} is no audio that this browser reads. WAV, MP3, FLAC and M4A mostly are.`);
  });
  if (buffer.duration > longest) throw new Error(`${name} is ${Math.ceil(buffer.duration)} s long, ${longest} s are allowed. Cut it first.`);
  const mixer = context(buffer.length); // to fewer channels, or one into both
  const source = new AudioBufferSourceNode(mixer, { buffer });
  source.connect(mixer.destination);
  source.start();
  const mixed = await mixer.startRendering();
  return Array.from({ length: codec.channels }, (_, channel) => mixed.getChannelData(channel));
}

/** Encodes a file at the highest rate, shows the codes, and decodes them at each rate. */
async function code(blob, name) {
  say(`Reading ${name}`);
  const audio = await read(blob, name);
  const offered = Object.entries(codec.quantizers).sort(([, left], [, right]) => left - right);
  const rates = offered.filter(([kbps]) => (query.get("bandwidth") ?? kbps) === kbps);
  if (!rates.length) throw new Error(`bandwidth is ${query.get("bandwidth")}; this model has ${offered.map(([kbps]) => kbps).join(", ")} kbps.`);
  const [samples, most] = [audio[0].length, rates.at(-1)[1]];
  const [chunks, encodeSpeed] = await timed(samples, () => codec.encode(audio, most, (share) => say(`Encoding ${name}`, share)));
  const frames = chunks.reduce((sum, chunk) => sum + chunk.frames, 0);
  const scales = chunks.filter((chunk) => chunk.scale).length;
  const pcm = 2 * samples * codec.channels;

  at.found.hidden = false;
  draw(chunks, most, frames);
  const facts = { clip: `${(samples / codec.rate).toFixed(2)} s`, frames, quantizers: most, encoded: speed(encodeSpeed) };
  at.facts.replaceChildren(...Object.entries(facts).map(([fact, value]) => element("div", {}, element("dt", {}, fact), element("dd", {}, `${value}`))));
  at.players.querySelectorAll("audio").forEach((old) => URL.revokeObjectURL(old.src));
  at.players.replaceChildren(player("Original", [`${(16 * codec.channels * codec.rate) / 1000} kbps`, `${bytes(pcm)} at 16 bits`], audio, 1));
  const decodes = {};
  Object.assign(window.encodec, { audio, chunks, encodeSpeed, decodes });
  for (const [kbps, quantizers] of rates) {
    const work = () => codec.decode(chunks, quantizers, samples, (share) => say(`Decoding at ${kbps} kbps`, share));
    const [decoded, decodeSpeed] = await timed(samples, work);
    const stored = Math.ceil((frames * quantizers * Math.log2(codec.entries)) / 8) + 4 * scales;
    const words = [`${quantizers} quantizers`, bytes(stored), `${short(pcm / stored)} : 1`, `decoded ${speed(decodeSpeed)}`];
    at.players.append(player(`${kbps} kbps`, words, decoded, quantizers / most));
    decodes[kbps] = { audio: decoded, speed: decodeSpeed };
  }
}

/** Returns what the work returns, and how many times faster than real time it was. */
async function timed(samples, work) {
  const start = performance.now();
  const result = await work();
  return [result, (1000 * samples) / codec.rate / (performance.now() - start)];
}

const short = (number) => (number < 10 ? number.toPrecision(2) : Math.round(number));
const speed = (times) => `${short(times)}× real time`;
const bytes = (count) => (count < 1000 ? `${count} B` : `${short(count / 1000)} kB`);
const element = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

function player(title, facts, audio, used) {
  const src = URL.createObjectURL(wav(audio));
  const controls = element("audio", { src, controls: true, ariaLabel: title });
  controls.onplay = () => {
    at.players.querySelectorAll("audio").forEach((other) => other === controls || other.pause());
    at.frame.style.setProperty("--used", used);
  };
  controls.onpause = () => at.frame.style.removeProperty("--used");
  const save = element("a", { href: src, download: `${title.replace(" ", "-")}.wav`, ariaLabel: `Save ${title}` }, "Save");
  return element("li", {}, element("h3", {}, title), element("p", {}, facts.join(" · ")), controls, save);
}

/** Paints a pixel per code. */
function draw(chunks, quantizers, frames) {
  Object.assign(at.codes, { width: frames, height: quantizers, ariaLabel: `${quantizers} rows of ${frames} codes` });
  at.frame.style.setProperty("--rows", quantizers);
  const pen = at.codes.getContext("2d");
  let left = 0;
  for (const { codes, frames: width } of chunks) {
    codes.forEach((entry, index) => {
      pen.fillStyle = `hsl(${(360 * Number(entry)) / codec.entries} 65% ${45 + (Number(entry) % 4) * 7}%)`;
      pen.fillRect(left + (index % width), Math.floor(index / width), 1, 1);
    });
    left += width;
  }
}

/** Returns a WAV file of 16 bits. */
function wav(audio) {
  const [channels, samples] = [audio.length, audio[0].length];
  const data = Int16Array.from({ length: channels * samples }, (_, index) => {
    const value = audio[index % channels][Math.floor(index / channels)];
    return Math.round(32767 * Math.max(-1, Math.min(1, value)));
  });
  const [word, half] = [(value) => Uint32Array.of(value), (...values) => Uint16Array.from(values)];
  const format = [word(16), half(1, channels), word(codec.rate), word(2 * channels * codec.rate), half(2 * channels, 16)];
  return new Blob(["RIFF", word(36 + data.byteLength), "WAVEfmt ", ...format, "data", word(data.byteLength), data], { type: "audio/wav" });
}

/** Records until the button is pressed again, or the clip is as long as allowed. */
async function record() {
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices?.getUserMedia({ audio: plain }).catch(({ name, message }) => {
    if (name === "NotAllowedError") throw new Error("The microphone was refused. Allow it beside the address, or choose a file.");
    throw new Error(`No microphone: ${message}. Choose a file instead.`);
  });
  if (!stream) throw new Error("Browsers give a microphone to pages of localhost and https only. Choose a file instead.");
  const lossless = "audio/webm;codecs=pcm"; // of Chromium alone
  const mimeType = MediaRecorder.isTypeSupported(lossless) ? lossless : undefined;
  recorder = new MediaRecorder(stream, { mimeType, audioBitsPerSecond: 256_000 });
  const pieces = [];
  recorder.ondataavailable = ({ data }) => pieces.push(data);
  const stopped = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  Object.assign(at.record, { textContent: "Stop", disabled: false }).focus();
  const start = performance.now();
  const clock = setInterval(() => {
    const share = (performance.now() - start) / 1000 / (longest - 0.5);
    if (share >= 1) at.record.click();
    else say(`Recording, ${longest} s at most`, share);
  }, 100);
  await stopped;
  clearInterval(clock);
  stream.getTracks().forEach((track) => track.stop());
  Object.assign(at.record, { textContent: "Record", disabled: true });
  await code(new Blob(pieces), "the recording");
}

at.record.onclick = () => (recorder?.state === "recording" ? recorder.stop() : run(record));
at.file.onchange = () => at.file.files[0] && run(() => code(at.file.files[0], at.file.files[0].name));
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file && !at.file.disabled) run(() => code(file, file.name));
};

await run(load);
if (codec && query.has("audio")) {
  await run(async () => {
    const answer = await fetch(query.get("audio"));
    if (!answer.ok) throw new Error(`${query.get("audio")} is not there.`);
    await code(await answer.blob(), query.get("audio"));
  });
}
