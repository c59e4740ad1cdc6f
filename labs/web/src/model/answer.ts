export interface Guess {
  label: string;
  probability: number;
}

export type Place = "server" | "browser";

/** What the page shows about one picture. Times in milliseconds. */
export interface Answer {
  guesses: Guess[];
  totalMs: number;
  stages: [name: string, ms: number][];
  where: string;
}

/** The network's raw outputs as probabilities that add up to 1. */
export function softmax(logits: ArrayLike<number>): number[] {
  const values = Array.from(logits);
  const highest = Math.max(...values); // so that the exponential cannot overflow
  const powers = values.map((value) => Math.exp(value - highest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** The `count` most probable labels, the best first. */
export function top(probabilities: number[], labels: string[], count: number): Guess[] {
  return labels
    .map((label, index) => ({ label, probability: probabilities[index] }))
    .sort((one, other) => other.probability - one.probability)
    .slice(0, count);
}

/** `speed_limit_30` as a person writes it. */
export function readable(label: string): string {
  if (label === "none") return "No sign";
  const words = label.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export function percent(probability: number): string {
  return `${(100 * probability).toFixed(1)} %`;
}

export function milliseconds(ms: number): string {
  return `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
}
