import { Problem } from "../problem";

/** How much has come so far, in bytes; `total` is 0 while unknown. */
export type Progress = (loaded: number, total: number) => void;

/** Fetch several files at once and report their common progress. */
export async function download(urls: string[], progress: Progress): Promise<ArrayBuffer[]> {
  const responses = await Promise.all(urls.map(get));
  const sizes = responses.map((response) => Number(response.headers.get("Content-Length") ?? 0));
  const total = sizes.every(Boolean) ? sizes.reduce((sum, size) => sum + size, 0) : 0;
  let loaded = 0;
  const count = (bytes: number) => progress((loaded += bytes), total);
  return Promise.all(responses.map((response) => counted(response, count).arrayBuffer()));
}

async function get(url: string): Promise<Response> {
  const response = await fetch(url).catch(() => null);
  if (response?.ok) return response;
  const reason = response ? `status ${response.status}` : "no answer";
  throw new Problem("The network could not be loaded.", `${url}: ${reason}. Is the server still running?`);
}

/** The same response; `count` hears the size of each part that arrives. */
function counted(response: Response, count: (bytes: number) => void): Response {
  const counter = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
    transform(part, controller) {
      count(part.byteLength);
      controller.enqueue(part);
    },
  });
  return new Response(response.body?.pipeThrough(counter));
}
