import { afterEach, expect, it, vi } from "vitest";

import { download } from "../src/model/download";
import { askServer, refusal } from "../src/model/server";
import { cameraProblem } from "../src/parts/camera";
import { asProblem, Problem } from "../src/problem";

const photo = new Blob([new Uint8Array([0xff, 0xd8, 0xff, 0xe0])], { type: "image/jpeg" });

function server(respond: (url: string, options: RequestInit) => Response | Promise<Response>) {
  vi.stubGlobal("fetch", vi.fn(async (url: string, options: RequestInit) => respond(url, options)));
}

afterEach(() => vi.unstubAllGlobals());

it("sends the file as it is and reads the answer", async () => {
  const top = [{ label: "stop", probability: 0.9 }];
  const timings_ms = { decode: 1, inference: 2, total: 4 };
  server((url, { method, body, headers }) => {
    expect([url, method, body]).toEqual(["v1/predict?top_k=3", "POST", photo]);
    expect(headers).toMatchObject({ "Content-Type": "image/jpeg" });
    return Response.json({ model: "signnet", engine: { engine: "onnxruntime" }, predictions: [{ top }], timings_ms });
  });
  const answer = await askServer(photo, 3);
  expect(answer.guesses).toEqual(top);
  expect(answer.where).toBe("on the server, onnxruntime");
  expect(answer.stages.map(([name]) => name)).toEqual(["decode", "inference", "network and waiting"]);
});

it("says it when the server is gone, busy, or refuses", async () => {
  server(() => Promise.reject(new TypeError("Failed to fetch")));
  await expect(askServer(photo)).rejects.toThrow("The server does not answer.");
  const busy = { title: "The server is busy", detail: "64 requests are waiting." };
  server(() => Response.json(busy, { status: 503 }));
  await expect(askServer(photo)).rejects.toThrow("The server is busy. Try again in a moment.");
  server(() => new Response("<h1>Bad gateway</h1>", { status: 502 }));
  await expect(askServer(photo)).rejects.toThrow("The server answered with status 502. Try another photo.");
});

it("does not say the same thing twice", () => {
  const refused = refusal({ title: "The picture is damaged", detail: "The picture is damaged (truncated)." }, 400);
  expect([refused.what, refused.advice]).toEqual(["The picture is damaged (truncated).", ""]);
});

it("sends nothing that is no picture", async () => {
  const nobody = vi.fn();
  vi.stubGlobal("fetch", nobody);
  await expect(askServer(new Blob(["hello"]))).rejects.toThrow("This file is not a picture.");
  await expect(askServer(new Blob([]))).rejects.toThrow("The file is empty.");
  await expect(askServer(new Blob([new Uint8Array(20_000_001)]))).rejects.toThrow("The file is too large");
  expect(nobody).not.toHaveBeenCalled();
});

it("reports the common progress of several files", async () => {
  const sizes: Record<string, number> = { a: 30, b: 12 };
  server((url) => new Response(new Uint8Array(sizes[url]), { headers: { "Content-Length": String(sizes[url]) } }));
  const heard: [number, number][] = [];
  const files = await download(["a", "b"], (loaded, total) => heard.push([loaded, total]));
  expect(files.map((file) => file.byteLength)).toEqual([30, 12]);
  expect(heard.at(-1)).toEqual([42, 42]);
});

it("names the file that could not be loaded", async () => {
  server(() => new Response("", { status: 404 }));
  await expect(download(["model.onnx"], () => {})).rejects.toThrow("model.onnx: status 404");
});

it("has words for what keeps a camera from starting", () => {
  for (const name of ["NotAllowedError", "NotFoundError", "NotReadableError", "AbortError"]) {
    expect(cameraProblem(name).message).toContain("You can still choose a photo from a file.");
  }
  expect(cameraProblem("NotAllowedError").what).toBe("The camera was not allowed.");
});

it("keeps the words of an error nobody foresaw", () => {
  const problem = new Problem("This.", "That.");
  expect(asProblem(problem)).toBe(problem);
  expect(asProblem(new Error("boom")).advice).toBe("boom");
});
