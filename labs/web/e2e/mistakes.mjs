// Preprocessing gone wrong, as one finds it in tutorials. Lab 04 lets each of them loose on the sample photos. Each takes
// the photo's file and the page's own functions, and returns the 3 x 64 x 64 numbers that the network gets.

/** Takes the canvas' numbers as they lie in memory: R, G, B, A, R, G, B, A, ... */
export async function alphaKept(file, { decode, resize }) {
  const { data } = resize(await decode(file), 64, 64);
  const rgba = Array.from({ length: 64 * 64 * 4 }, (_, i) => (i % 4 === 3 ? 255 : data[3 * (i >> 2) + (i % 4)]));
  return Float32Array.from(rgba.slice(0, 3 * 64 * 64), (value) => value / 255);
}

/** Drops the alpha, but leaves R, G and B side by side instead of in three planes. */
export async function notPlanes(file, { decode, resize }) {
  return Float32Array.from(resize(await decode(file), 64, 64).data, (value) => value / 255);
}

/** Blue first, as OpenCV has it. */
export async function blueFirst(file, { decode, resize, toTensor }) {
  const tensor = toTensor(resize(await decode(file), 64, 64));
  const plane = 64 * 64;
  return Float32Array.from([...tensor.slice(2 * plane), ...tensor.slice(plane, 2 * plane), ...tensor.slice(0, plane)]);
}

/** Lets the canvas resize, by the nearest pixel. */
export async function resizedNearest(file, { toTensor, withoutAlpha }) {
  const context = Object.assign(document.createElement("canvas"), { width: 64, height: 64 }).getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(await createImageBitmap(file), 0, 0, 64, 64);
  return toTensor(withoutAlpha(context.getImageData(0, 0, 64, 64).data, 64, 64));
}

/** Lets the canvas resize, as it does when nothing is said. */
export async function resizedSmooth(file, { toTensor, withoutAlpha }) {
  const context = Object.assign(document.createElement("canvas"), { width: 64, height: 64 }).getContext("2d");
  context.drawImage(await createImageBitmap(file), 0, 0, 64, 64);
  return toTensor(withoutAlpha(context.getImageData(0, 0, 64, 64).data, 64, 64));
}
