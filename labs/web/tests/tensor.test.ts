import { expect, it } from "vitest";

import { isPicture } from "../src/picture/decode";
import { toTensor, withoutAlpha } from "../src/picture/tensor";

it("drops the alpha and nothing else", () => {
  const rgba = new Uint8ClampedArray([1, 2, 3, 255, 4, 5, 6, 0]);
  expect([...withoutAlpha(rgba, 2, 1).data]).toEqual([1, 2, 3, 4, 5, 6]);
});

it("puts all red before all green before all blue, in 0..1", () => {
  const tensor = toTensor({ width: 2, height: 1, data: new Uint8Array([255, 0, 51, 0, 255, 102]) });
  expect([...tensor]).toEqual([1, 0, 0, 1, 0.2, 0.4].map(Math.fround));
});

it.each([
  ["JPEG", [0xff, 0xd8, 0xff, 0xe0], true],
  ["PNG", [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a], true],
  ["WebP", [..."RIFF\0\0\0\0WEBP"].map((letter) => letter.charCodeAt(0)), true],
  ["WAV", [..."RIFF\0\0\0\0WAVE"].map((letter) => letter.charCodeAt(0)), false],
  ["GIF", [..."GIF89a"].map((letter) => letter.charCodeAt(0)), false],
  ["text", [..."<svg xmlns="].map((letter) => letter.charCodeAt(0)), false],
  ["nothing", [], false],
])("tells a picture by its first bytes: %s", (_, head, expected) => {
  expect(isPicture(new Uint8Array(head))).toBe(expected);
});
