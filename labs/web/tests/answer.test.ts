import { expect, it } from "vitest";

import { milliseconds, percent, readable, softmax, top } from "../src/model/answer";

it("turns logits into probabilities, however large they are", () => {
  expect(softmax([0, 0])).toEqual([0.5, 0.5]);
  const [low, high] = softmax([999, 1000]);
  expect(low + high).toBeCloseTo(1, 12);
  expect(high / low).toBeCloseTo(Math.E, 9);
});

it("ranks the labels, the best first", () => {
  expect(top([0.1, 0.7, 0.2], ["a", "b", "c"], 2)).toEqual([
    { label: "b", probability: 0.7 },
    { label: "c", probability: 0.2 },
  ]);
});

it("writes for people", () => {
  expect(readable("speed_limit_30")).toBe("Speed limit 30");
  expect(readable("none")).toBe("No sign");
  expect(percent(0.98765)).toBe("98.8 %");
  expect(milliseconds(3.14159)).toBe("3.1 ms");
  expect(milliseconds(31.4159)).toBe("31 ms");
});
