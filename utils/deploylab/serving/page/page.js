const find = (id) => document.getElementById(id);
const drop = find("drop");
const files = find("files");

const url = new URL("v1/predict", location.href).href;
find("command").textContent = `curl -F image=@photo.jpg ${url}`;

function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text ?? "" }, properties);
}

function bar({ label, probability }) {
  const percent = `${(100 * probability).toFixed(1)} %`;
  const item = element("li");
  const meter = element("meter", percent, { value: probability });
  meter.setAttribute("aria-hidden", "true"); // the text beside it says the same
  item.append(element("span", label.replaceAll("_", " ")), element("span", percent), meter);
  return item;
}

function result(file, prediction) {
  const article = element("article");
  const picture = element("img", "", { alt: "", src: URL.createObjectURL(file) });
  picture.onload = () => URL.revokeObjectURL(picture.src);
  article.append(element("h2", file.name));
  if (prediction.top) {
    const list = element("ol");
    article.append(picture);
    list.append(...prediction.top.map(bar));
    article.append(list);
  } else {
    article.append(element("p", prediction.problem.detail, { className: "wrong" }));
  }
  return article;
}

async function ask(chosen) {
  const form = new FormData();
  chosen.forEach((file) => form.append("images", file));
  const reply = await fetch(url, { method: "POST", body: form });
  const answer = await reply.json();
  if (answer.predictions) return answer;
  // A problem of the whole request; with a single picture it is that picture's.
  if (chosen.length > 1) throw new Error(answer.detail);
  return { predictions: [{ problem: answer }] };
}

let latest = 0;

async function show(list) {
  const chosen = [...list];
  if (!chosen.length) return;
  const mine = ++latest;
  const say = (text, className = "") => Object.assign(find("status"), { textContent: text, className });
  say("Asking the server …");
  try {
    const answer = await ask(chosen);
    if (mine !== latest) return;
    find("results").replaceChildren(...answer.predictions.map((one, index) => result(chosen[index], one)));
    say(summary(answer));
  } catch (error) {
    if (mine !== latest) return;
    find("results").replaceChildren();
    say(error instanceof TypeError ? "The server cannot be reached." : error.message, "wrong");
  }
}

function summary({ model, engine, predictions, timings_ms: times }) {
  const best = predictions.filter((one) => one.top).map((one) => one.top[0].label.replaceAll("_", " "));
  if (!times) return "This cannot be read.";
  return `${best.join(", ")} (${model} on ${engine.engine} ${engine.version}, ${times.total.toFixed(1)} ms in the server)`;
}

files.addEventListener("change", () => show(files.files));
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") show(event.dataTransfer.files);
  });
}
