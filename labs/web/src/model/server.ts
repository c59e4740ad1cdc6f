import { Problem } from "../problem";
import { checkPicture } from "../picture/decode";
import type { Answer, Guess } from "./answer";

const PATIENCE_MS = 20_000;

/** The parts of the server's answer that the page uses; the API is described in the course's lab 02. */
interface Prediction {
  model: string;
  engine: { engine?: string; threads?: number };
  predictions: { top?: Guess[]; problem?: ProblemDocument }[];
  timings_ms: Record<string, number>;
}

/** RFC 9457, "Problem Details for HTTP APIs". */
interface ProblemDocument {
  title?: string;
  detail?: string;
}

/** Send the file as it is, and let the server decode, resize and run the network. */
export async function askServer(file: Blob, topK = 5): Promise<Answer> {
  await checkPicture(file);
  const start = performance.now();
  const response = await post(`v1/predict?top_k=${topK}`, file);
  const answer = (await response.json()) as Prediction;
  const totalMs = performance.now() - start;
  const { top, problem } = answer.predictions[0];
  if (!top) throw refusal(problem ?? {}, 200);
  const stages = Object.entries(answer.timings_ms).filter(([name]) => name !== "total");
  const atWork = stages.reduce((sum, [, ms]) => sum + ms, 0);
  return {
    guesses: top,
    totalMs,
    stages: [...stages, ["network and waiting", Math.max(0, totalMs - atWork)]],
    where: ["on the server", answer.engine.engine].filter(Boolean).join(", "),
  };
}

async function post(url: string, file: Blob): Promise<Response> {
  const headers = { "Content-Type": file.type || "application/octet-stream", Accept: "application/json" };
  const signal = AbortSignal.timeout(PATIENCE_MS);
  const response = await fetch(url, { method: "POST", body: file, headers, signal }).catch((error) => {
    const late = error instanceof DOMException && error.name === "TimeoutError";
    throw new Problem(
      late ? "The server takes too long." : "The server does not answer.",
      "Is it still running? You can also switch to “This browser”.",
    );
  });
  if (!response.ok) throw refusal(await response.json().catch(() => ({})), response.status);
  return response;
}

/** The server's own words, else what its status code means for the user. */
export function refusal({ title, detail }: ProblemDocument, status: number): Problem {
  const what = withStop(title ?? `The server answered with status ${status}`);
  if (status === 429 || status === 503) return new Problem(what, "Try again in a moment.");
  const advice = withStop(detail ?? "Try another photo");
  return advice.startsWith(what.slice(0, -1)) ? new Problem(advice, "") : new Problem(what, advice);
}

function withStop(sentence: string): string {
  const text = sentence.charAt(0).toUpperCase() + sentence.slice(1);
  return /[.!?]$/.test(text) ? text : text + ".";
}
