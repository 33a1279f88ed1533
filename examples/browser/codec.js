// EnCodec in onnxruntime-web: the graphs that `encodec-fast export` writes, and what the host does around them.
// Audio is an array of channels, a Float32Array each. docs/other-runtimes.md has the formulas.

/** A model in two graphs, from `Codec.load`. */
export class Codec {
  /** Loads encoder.onnx and decoder.onnx behind a folder's URL. progress(file, share) tells how much of a file is there. */
  static async load(ort, folder, progress) {
    const codec = Object.assign(new Codec(), { ort });
    for (const part of ["encoder", "decoder"]) {
      const bytes = await download(`${folder}/${part}.onnx`, (share) => progress(`${part}.onnx`, share));
      codec.metadata ??= readMetadata(bytes); // before onnxruntime's worker takes the bytes; both files have the same
      codec[part] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    }
    codec.rate = Number(codec.metadata.sampling_rate);
    codec.channels = Number(codec.metadata.audio_channels);
    codec.entries = Number(codec.metadata.codebook_size);
    codec.quantizers = JSON.parse(codec.metadata.quantizers_of_bandwidth); // { "6": 8, ... }, by kbps
    codec.chunkLength = JSON.parse(codec.metadata.chunk_length); // samples, or null for a model of whole clips
    codec.chunkStride = JSON.parse(codec.metadata.chunk_stride);
    return codec;
  }

  /** Returns the chunks of a clip, each as `encodeChunk` does; one chunk for a model of whole clips. */
  async encode(audio, quantizers, progress = () => {}) {
    const samples = audio[0].length;
    const [length, stride] = [this.chunkLength ?? samples, this.chunkStride ?? samples];
    const chunks = [];
    for (let start = 0; start < samples; start += stride) {
      progress(start / samples);
      chunks.push(await this.encodeChunk(audio.map((channel) => channel.subarray(start, start + length)), quantizers));
    }
    return chunks;
  }

  /** Returns the audio of a clip's chunks at their first `quantizers`, cut to `samples`. */
  async decode(chunks, quantizers, samples, progress = () => {}) {
    const parts = [];
    for (const chunk of chunks) {
      progress(parts.length / chunks.length);
      parts.push(await this.decodeChunk(chunk, quantizers));
    }
    const joined = this.chunkStride ? overlapAdd(parts, this.chunkStride) : parts[0];
    return joined.map((channel) => channel.subarray(0, samples));
  }

  /** Returns { codes: BigInt64Array [quantizers * frames], frames, scale: Float32Array [1], or undefined if the model has none }. */
  async encodeChunk(audio, quantizers) {
    const samples = audio[0].length;
    const data = new Float32Array(audio.length * samples);
    audio.forEach((channel, index) => data.set(channel, index * samples));
    const { codes, scale } = await this.encoder.run({
      audio: new this.ort.Tensor("float32", data, [1, audio.length, samples]),
      num_quantizers: new this.ort.Tensor("int64", [BigInt(quantizers)], []),
    });
    return { codes: codes.data, frames: codes.dims[2], scale: scale?.data };
  }

  /** Returns the audio of a chunk. The first rows of codes are the codes at a lower rate. */
  async decodeChunk({ codes, frames, scale }, quantizers) {
    // slices are copies: onnxruntime's worker takes the arrays that it is given
    const feeds = { codes: new this.ort.Tensor("int64", codes.slice(0, quantizers * frames), [1, quantizers, frames]) };
    if (scale) feeds.scale = new this.ort.Tensor("float32", scale.slice(), [1, 1]);
    const { audio } = await this.decoder.run(feeds);
    const [, channels, samples] = audio.dims;
    return Array.from({ length: channels }, (_, index) => audio.data.subarray(index * samples, (index + 1) * samples));
  }
}

/** Returns the sum of parts at multiples of the stride, weighed by a triangle over the first. */
function overlapAdd(parts, stride) {
  const samples = Math.max(...parts.map((part, number) => number * stride + part[0].length));
  const [sums, weights] = [parts[0].map(() => new Float64Array(samples)), new Float64Array(samples)];
  const triangle = parts[0][0].map((_, index, whole) => 0.5 - Math.abs((index + 1) / (whole.length + 1) - 0.5));
  parts.forEach((part, number) => {
    for (let index = 0, at = number * stride; index < part[0].length; index++, at++) {
      weights[at] += triangle[index];
      part.forEach((channel, side) => (sums[side][at] += triangle[index] * channel[index]));
    }
  });
  return sums.map((sum) => Float32Array.from(sum, (value, at) => value / weights[at]));
}

/** Returns the bytes behind a URL. Throws an error with `status` where the server has none. */
async function download(url, progress) {
  const answer = await fetch(url);
  if (!answer.ok) throw Object.assign(new Error(`${url} could not be loaded: ${answer.status}.`), { status: answer.status });
  const size = Number(answer.headers.get("content-length"));
  let got = 0;
  const count = (piece, out) => {
    got += piece.length;
    progress(size ? got / size : undefined);
    out.enqueue(piece);
  };
  return new Uint8Array(await new Response(answer.body.pipeThrough(new TransformStream({ transform: count }))).arrayBuffer());
}

/** Returns the metadata of an ONNX file, { key: text }, which onnxruntime-web doesn't give (microsoft/onnxruntime issue 16547). */
function readMetadata(bytes) {
  const text = ([, value]) => new TextDecoder().decode(value);
  const properties = [...fields(bytes)].filter(([number]) => number === 14); // metadata_props of ModelProto
  return Object.fromEntries(properties.map(([, property]) => [...fields(property)].map(text))); // fields 1 and 2: key and value
}

/** Yields [number, value] of a protobuf message's fields; values are numbers, or bytes. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    for (let value = 0, factor = 1; ; factor *= 128) {
      value += (bytes[at] % 128) * factor;
      if (!(bytes[at++] >= 128)) return value;
    }
  };
  while (at < bytes.length) {
    const [key, value] = [varint(), varint()]; // of bytes, their number
    if (key % 8 === 0) yield [key >> 3, value];
    else if (key % 8 === 2) yield [key >> 3, bytes.subarray(at, (at += value))];
    else throw new Error("This is no ONNX file.");
  }
}
