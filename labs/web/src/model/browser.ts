import * as ort from "onnxruntime-web/wasm";
import glueUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

import { checkPicture, decode } from "../picture/decode";
import { resize } from "../picture/resize";
import { toTensor } from "../picture/tensor";
import { Problem } from "../problem";
import { type Answer, softmax, top } from "./answer";
import { describe } from "./description";
import { download, type Progress } from "./download";

const MOST_THREADS = 4;

/** The network, ready to run in this browser. */
export class BrowserModel {
  private constructor(
    private readonly session: ort.InferenceSession,
    private readonly labels: string[],
    private readonly size: number,
    readonly threads: number,
  ) {}

  /** Fetch the runtime and the network, and start them. */
  static async load(progress: Progress): Promise<BrowserModel> {
    const { model, labels, size } = await describe();
    const [wasm, network] = await download([wasmUrl, model], progress);
    // Threads need shared memory, and a browser grants that to cross-origin isolated pages only.
    const threads = crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.wasmPaths = { mjs: new URL(glueUrl, document.baseURI).href };
    const options: ort.InferenceSession.SessionOptions = { executionProviders: ["wasm"] };
    const session = await ort.InferenceSession.create(new Uint8Array(network), options).catch((error) => {
      throw new Problem("The network cannot run in this browser.", `${error}. Switch to “Server”.`);
    });
    const loaded = new BrowserModel(session, labels, size, threads);
    await loaded.run(new Float32Array(3 * size * size)); // so that the first photo does not wait for the warm-up
    return loaded;
  }

  /** Logits for one picture given as a float32 tensor of shape (1, 3, size, size). */
  async run(tensor: Float32Array): Promise<Float32Array> {
    const input = new ort.Tensor("float32", tensor, [1, 3, this.size, this.size]);
    const outputs = await this.session.run({ [this.session.inputNames[0]]: input });
    return outputs[this.session.outputNames[0]].data as Float32Array;
  }

  /** Decode, resize, run and rank, with the time each took. */
  async ask(file: Blob, topK = 5): Promise<Answer> {
    await checkPicture(file);
    const marks = [performance.now()];
    const timed = <T>(value: T): T => (marks.push(performance.now()), value);
    const pixels = timed(await decode(file));
    const tensor = timed(toTensor(resize(pixels, this.size, this.size)));
    const logits = timed(await this.run(tensor));
    const names = ["decode", "preprocess", "inference"];
    return {
      guesses: top(softmax(logits), this.labels, topK),
      totalMs: marks[marks.length - 1] - marks[0],
      stages: names.map((name, index) => [name, marks[index + 1] - marks[index]]),
      where: `in this browser, ${this.threads} ${this.threads === 1 ? "thread" : "threads"}`,
    };
  }
}
