// Drives the page in a real browser, headless. Reads one job as a line of JSON from standard input, writes one line of
// JSON. `deploylab.serving.web.drive` calls it; when that program ends, standard input closes, and the browser with it.
import { once } from "node:events";
import { readFile, rm, truncate, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, parse } from "node:path";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

import * as mistakes from "./mistakes.mjs";

const SIZES = { desktop: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } };
const PATIENCE_MS = 60_000;
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-crash-reporter",
  "--use-fake-device-for-media-stream",
];

const PLACES = { server: "Server", browser: "This browser" };

const result = (result) => ({ result });
const failure = (error) => ({ error: String(error.stack ?? error) });

async function open(job, { size = "desktop", ...options } = {}) {
  const phone = size === "phone";
  const context = await browser.newContext({
    viewport: SIZES[size],
    hasTouch: phone,
    isMobile: phone,
    deviceScaleFactor: job.scale ?? 1,
    reducedMotion: "reduce",
    ...options,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  page.on("filechooser", () => {}); // from the start: listening switches the system's dialog off, which takes a moment
  page.complaints = [];
  page.on("console", (message) => message.type() === "error" && page.complaints.push(message.text()));
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  await page.goto(job.url, { waitUntil: "networkidle" });
  return page;
}

const choose = (page, files) => page.setInputFiles("#file", files);
const place = (page, name) => page.getByRole("radio", { name }).check();
const message = async (page) => (await page.getByRole("alert").innerText()).replace(/\s+/g, " ").replace(/ ×$/, "");
/** Choose a photo and wait for its answer; one shown before is marked, so that it is not mistaken for it. */
async function ask(page, file) {
  await page.evaluate(() => document.querySelector(".guesses")?.setAttribute("data-old", ""));
  await choose(page, file);
  await page.locator(".guesses:not([data-old])").waitFor();
  return shown(page);
}

async function shown(page) {
  const [first] = await page.locator(".guesses li").all();
  return {
    label: await first.getAttribute("data-label"),
    probability: await first.locator(".value").innerText(),
    bars: await page.locator(".guesses li").count(),
    latency: await page.locator(".latency").innerText(),
    announced: await page.getByRole("status").innerText(),
  };
}

/** Upload each photo in both places; then keep pictures of the page. */
async function answers(job) {
  const found = [];
  for (const size of job.sizes ?? ["desktop", "phone"]) {
    const page = await open(job, { size, colorScheme: job.colorScheme ?? "light" });
    for (const [where, name] of Object.entries(PLACES)) {
      await place(page, name);
      for (const photo of job.photos) {
        found.push({ size, place: where, photo, ...(await ask(page, photo)) });
      }
    }
    const isolated = await page.evaluate(() => crossOriginIsolated);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (job.out) await page.screenshot({ path: `${job.out}/${size}.png`, fullPage: true });
    found.push({ size, isolated, overflow, complaints: page.complaints });
    await page.context().close();
  }
  return found;
}

/** What the page says when something goes wrong. */
async function errors(job) {
  const page = await open(job);
  const said = {};
  const file = (name, mimeType, buffer) => ({ name, mimeType, buffer });
  await choose(page, file("notes.txt", "text/plain", Buffer.from("This is not a picture.\n")));
  said.text = await message(page);
  if (job.out) await page.locator(".answer").screenshot({ path: `${job.out}/error.png` });
  const large = join(tmpdir(), "large.jpg");
  await writeFile(large, "");
  await truncate(large, 21_000_000);
  await choose(page, large);
  said.large = await message(page);
  const half = (await readFile(job.photos[0])).subarray(0, 60);
  for (const name of ["server", "browser"]) {
    await place(page, PLACES[name]);
    await choose(page, file("half.jpg", "image/jpeg", half));
    await page.getByText("damaged").first().waitFor();
    said[`damaged, ${name}`] = await message(page);
  }
  await place(page, PLACES.server);
  await page.route("**/v1/predict*", (route) => route.abort("connectionrefused"));
  await choose(page, job.photos[0]);
  await page.getByText("does not answer").waitFor();
  said.down = await message(page);
  await page.unroute("**/v1/predict*");
  await page.getByRole("button", { name: "Use the camera" }).click(); // headless, nobody is there to allow it
  await page.getByText("camera was not allowed").waitFor();
  said.camera = await message(page);
  await page.getByRole("button", { name: "Close this message" }).click();
  said.closed = (await page.getByRole("alert").count()) === 0;
  said.then = await ask(page, job.photos[0]);
  return said;
}

/** A photo from the (pretended) camera. */
async function camera(job) {
  const page = await open(job, { permissions: ["camera"] });
  await page.getByRole("button", { name: "Use the camera" }).click();
  await page.getByRole("button", { name: "Take the photo" }).click();
  await page.locator(".guesses").waitFor();
  return { ...(await shown(page)), cameraOff: (await page.locator("video").count()) === 0 };
}

/** The page without a mouse: the order of Tab, what Space, Enter and the arrow keys do, and where the focus goes. */
async function keyboard(job) {
  const page = await open(job);
  const focused = () =>
    page.evaluate(() => {
      const element = document.activeElement;
      return element.labels?.[0]?.innerText ?? (element.innerText || element.querySelector("img")?.alt || element.tagName);
    });
  const order = [];
  const samples = await page.locator(".samples button").count();
  for (let i = 0; i < 4; i++) {
    await page.keyboard.press("Tab");
    order.push(await focused());
  }
  await page.keyboard.press("Shift+Tab"); // back to the switch
  await page.keyboard.press("ArrowRight");
  const checked = await page.getByRole("radio", { name: PLACES.browser }).isChecked();
  for (let i = 0; i < 2; i++) await page.keyboard.press("Shift+Tab");
  order.push(await focused());
  const chooser = page.waitForEvent("filechooser", { timeout: 10_000 });
  await page.keyboard.press("Enter");
  await (await chooser).setFiles(job.photos[0]);
  await page.locator(".guesses").waitFor();
  const answered = await shown(page);
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.getByRole("alert").waitFor();
  return { order, samples, checked, answered, afterCamera: await focused() };
}

/** axe-core's findings: the page as it opens, with an answer and with an error, light and wide, dark and narrow. */
async function accessibility(job) {
  const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
  const found = [];
  for (const [size, colorScheme] of [["desktop", "light"], ["phone", "dark"]]) {
    const page = await open(job, { size, colorScheme, bypassCSP: true });
    await page.evaluate(axe);
    for (const state of ["start", "answer", "error"]) {
      if (state === "answer") await ask(page, job.photos[0]);
      if (state === "error") {
        await choose(page, { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("no picture") });
        await page.getByRole("alert").waitFor();
      }
      const { violations, passes } = await page.evaluate(() => globalThis.axe.run());
      const broken = violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`);
      found.push({ size, colorScheme, state, broken, passed: passes.length });
      if (job.out) await page.screenshot({ path: `${job.out}/${size}-${colorScheme}-${state}.png`, fullPage: true });
    }
    await page.context().close();
  }
  return found;
}

/** For each photo the pixels after the browser's decoder and after our resize, as files in `out`; and the logits. */
async function pipeline(job) {
  const page = await withModel(job);
  const results = [];
  for (const photo of job.photos) {
    const { decoded, resized, ...rest } = await page.evaluate(async (bytes) => {
      const { decode, resize, toTensor } = globalThis.pipeline;
      const pixels = await decode(globalThis.fileOf(bytes));
      const small = resize(pixels, 64, 64);
      const logits = [...(await globalThis.model.run(toTensor(small)))];
      const [decoded, resized] = await Promise.all([pixels.data, small.data].map(globalThis.base64));
      return { width: pixels.width, height: pixels.height, logits, decoded, resized };
    }, await base64(photo));
    await writeFile(`${job.out}/${parse(photo).name}.decoded`, decoded, "base64");
    await writeFile(`${job.out}/${parse(photo).name}.resized`, resized, "base64");
    results.push({ photo, ...rest });
  }
  return results;
}

/** For each mistake and each photo the tensor, as a file in `out`, and the logits. */
async function wrong(job) {
  const page = await withModel(job);
  const sources = Object.fromEntries(Object.entries(mistakes).map(([name, mistake]) => [name, mistake.toString()]));
  const logits = Object.fromEntries(Object.keys(sources).map((name) => [name, []]));
  for (const photo of job.photos) {
    const call = { bytes: await base64(photo), sources };
    const results = await page.evaluate(async ({ bytes, sources }) => {
      const results = [];
      for (const [name, source] of Object.entries(sources)) {
        const tensor = await globalThis.eval(`(${source})`)(globalThis.fileOf(bytes), globalThis.pipeline);
        results.push([name, await globalThis.base64(tensor), [...(await globalThis.model.run(tensor))]]);
      }
      return results;
    }, call);
    for (const [name, tensor, row] of results) {
      await writeFile(`${job.out}/${name}-${parse(photo).name}.tensor`, tensor, "base64");
      logits[name].push(row);
    }
  }
  return logits;
}

const base64 = async (path) => (await readFile(path)).toString("base64");

/** The page with its own functions and its model at hand. */
async function withModel(job) {
  const page = await open(job);
  await page.evaluate(async () => {
    globalThis.pipeline = await import(new URL("pipeline.js", document.baseURI).href);
    globalThis.model = await globalThis.pipeline.BrowserModel.load(() => {});
    globalThis.fileOf = (text) => new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]);
    globalThis.base64 = async (bytes) => {
      const reader = new FileReader();
      reader.readAsDataURL(new Blob([bytes]));
      await new Promise((resolve) => reader.addEventListener("load", resolve));
      return reader.result.split(",")[1];
    };
  });
  return page;
}

// What can be asked for. Each gets the job and returns what it saw.
const SCENARIOS = { answers, errors, camera, keyboard, accessibility, pipeline, wrong };

const asked = createInterface({ input: process.stdin });
const job = JSON.parse((await once(asked, "line"))[0]);
const alone = once(asked, "close").then(() => "alone");
const flags = job.cameraFilm ? [...FLAGS, `--use-file-for-fake-video-capture=${job.cameraFilm}`] : FLAGS;
let browser;
const opening = chromium
  .launch({ executablePath: job.chromium, args: flags, timeout: PATIENCE_MS })
  .then((opened) => (browser = opened));
const scenario = opening.then(() => SCENARIOS[job.scenario](job)).then(result, failure);
const outcome = await Promise.race([alone, scenario]);
await opening.then(() => browser.close(), () => {});
// Here, and not only in the program that asked: it may be gone. Chromium's helpers may still be writing, hence the retries.
await rm(job.temporary, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
if (outcome === "alone") process.exit(1);
process.stdout.write(JSON.stringify(outcome) + "\n", () => process.exit(0));
