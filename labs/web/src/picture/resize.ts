/**
 * Pillow's bilinear resize of 8-bit pixels, to the last bit.
 *
 * A canvas resizes in its own way, which differs between browsers and averages over too few pixels when it shrinks a lot.
 * The network was trained on what Pillow makes, so this does what Pillow does (src/libImaging/Resample.c): weights in
 * fixed point, one pass along the rows, rounded to 8 bits, and one along the columns.
 */

const CHANNELS = 3; // R, G, B
const PRECISION_BITS = 32 - 8 - 2; // 8 bits are the pixel, 2 keep the sum from overflowing
const ONE = 2 ** PRECISION_BITS;

/** Pixels as rows of R, G, B. */
export interface Pixels {
  width: number;
  height: number;
  data: Uint8Array | Uint8ClampedArray;
}

/** For each pixel of the result: the first source pixel that counts, and the weights from there on. */
interface Weights {
  first: number;
  values: number[];
}

/** Squeeze `source` into `width` x `height`. */
export function resize(source: Pixels, width: number, height: number): Pixels {
  return columnsFirst(source, width, height)
    ? alongRows(alongColumns(source, height), width)
    : alongColumns(alongRows(source, width), height);
}

/** Since version 13 Pillow starts with the columns if that saves work. The order shows in the last bit of some pixels. */
function columnsFirst(source: Pixels, width: number, height: number): boolean {
  return source.height > height && source.height - height > 2 * (source.width - width);
}

function alongRows(source: Pixels, width: number): Pixels {
  if (width === source.width) return source;
  const data = new Uint8Array(width * source.height * CHANNELS);
  const weights = bilinearWeights(source.width, width);
  let to = 0;
  for (let y = 0; y < source.height; y++) {
    const row = y * source.width * CHANNELS;
    for (const { first, values } of weights) {
      for (let channel = 0; channel < CHANNELS; channel++) {
        data[to++] = weightedSum(source.data, row + first * CHANNELS + channel, CHANNELS, values);
      }
    }
  }
  return { width, height: source.height, data };
}

function alongColumns(source: Pixels, height: number): Pixels {
  if (height === source.height) return source;
  const stride = source.width * CHANNELS;
  const data = new Uint8Array(stride * height);
  let to = 0;
  for (const { first, values } of bilinearWeights(source.height, height)) {
    for (let column = 0; column < stride; column++) {
      data[to++] = weightedSum(source.data, first * stride + column, stride, values);
    }
  }
  return { width: source.width, height, data };
}

function weightedSum(data: Pixels["data"], from: number, step: number, values: number[]): number {
  let sum = ONE / 2; // so that the shift below rounds
  for (let i = 0, at = from; i < values.length; i++, at += step) sum += data[at] * values[i];
  return Math.min(255, sum >> PRECISION_BITS);
}

/** A triangle around the centre of each result pixel; when shrinking it is stretched, so that every pixel counts. */
export function bilinearWeights(from: number, to: number): Weights[] {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const triangle = Array.from({ length: end - first }, (_, i) =>
      Math.max(0, 1 - Math.abs((first + i - centre + 0.5) * (1 / reach))),
    );
    const total = triangle.reduce((sum, weight) => sum + weight, 0);
    return { first, values: triangle.map((weight) => Math.trunc(0.5 + (weight / total) * ONE)) };
  });
}
