import { readFileSync } from "node:fs";

import { describe, expect, it } from "vitest";

import { bilinearWeights, resize } from "../src/picture/resize";

interface Case {
  from: [width: number, height: number];
  to: [width: number, height: number];
  pixels: string;
  expected: string;
}

/** What Pillow makes of some pixels. tests/unit/test_web_app.py writes many more and names their file here. */
const file = process.env.PILLOW_CASES ?? new URL("./pillow.json", import.meta.url);
const cases = JSON.parse(readFileSync(file, "utf8")) as Case[];
const bytes = (text: string) => new Uint8Array(Buffer.from(text, "base64"));

describe("resize", () => {
  it.each(cases)("is Pillow's from $from to $to", ({ from: [width, height], to, pixels, expected }) => {
    const resized = resize({ width, height, data: bytes(pixels) }, ...to);
    expect([resized.width, resized.height]).toEqual(to);
    expect(Buffer.from(resized.data).equals(bytes(expected))).toBe(true);
  });

  it("keeps a flat colour as it is", () => {
    const grey = new Uint8Array(31 * 17 * 3).fill(137);
    expect(new Set(resize({ width: 31, height: 17, data: grey }, 5, 9).data)).toEqual(new Set([137]));
  });
});

describe("bilinearWeights", () => {
  it("lets every source pixel count when it shrinks", () => {
    const counted = new Set<number>();
    for (const { first, values } of bilinearWeights(640, 64)) {
      values.forEach((weight, index) => weight > 0 && counted.add(first + index));
    }
    expect(counted.size).toBe(640);
  });

  it("adds up to one, up to rounding", () => {
    for (const { values } of bilinearWeights(481, 64)) {
      const sum = values.reduce((total, weight) => total + weight, 0);
      expect(Math.abs(sum - 2 ** 22)).toBeLessThan(values.length);
    }
  });
});
