import type { Pixels } from "./resize";

/** What a canvas gives (R, G, B, A for each pixel) without its fourth value. */
export function withoutAlpha(rgba: Uint8ClampedArray, width: number, height: number): Pixels {
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { width, height, data };
}

/** Pixel by pixel R, G, B in 0..255 becomes plane by plane (all R, all G, all B) in 0..1: NCHW float32. */
export function toTensor({ width, height, data }: Pixels): Float32Array {
  const plane = width * height;
  const tensor = new Float32Array(3 * plane);
  for (let pixel = 0; pixel < plane; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      tensor[channel * plane + pixel] = data[3 * pixel + channel] / 255;
    }
  }
  return tensor;
}
