import { useEffect, useRef, useState } from "react";

import { type Answer, type Place, percent, readable } from "./model/answer";
import { askServer } from "./model/server";
import { CameraView } from "./parts/CameraView";
import { Guesses } from "./parts/Guesses";
import { PlaceSwitch } from "./parts/PlaceSwitch";
import { ProblemNote } from "./parts/ProblemNote";
import { Samples } from "./parts/Samples";
import { Source } from "./parts/Source";
import { useBrowserModel } from "./parts/useBrowserModel";
import { usePasteAndDrop } from "./parts/usePasteAndDrop";
import { asProblem, type Problem } from "./problem";

export function App() {
  const [place, setPlace] = useState<Place>("server");
  const [photo, setPhoto] = useState<File | null>(null);
  const [answer, setAnswer] = useState<Answer | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const [busy, setBusy] = useState(false);
  const [camera, setCamera] = useState<"unused" | "on" | "off">("unused");
  const model = useBrowserModel();
  const latest = useRef(0);

  async function ask(file: File, where: Place) {
    const turn = ++latest.current; // a newer question makes this answer stale
    setPhoto(file);
    closeCamera();
    setAnswer(null);
    setProblem(null);
    setBusy(true);
    try {
      const given = where === "server" ? await askServer(file) : await (await model.ready()).ask(file);
      if (turn === latest.current) setAnswer(given);
    } catch (error) {
      if (turn === latest.current) setProblem(asProblem(error));
    } finally {
      if (turn === latest.current) setBusy(false);
    }
  }

  function closeCamera() {
    setCamera((now) => (now === "on" ? "off" : now));
  }

  function choosePlace(where: Place) {
    setPlace(where);
    setProblem(null);
    if (photo) void ask(photo, where);
    else if (where === "browser") model.ready().catch((error) => setProblem(asProblem(error)));
  }

  const take = (file: File) => void ask(file, place);
  const over = usePasteAndDrop(take);

  return (
    <div className="page">
      <header>
        <h1>RoadSigns</h1>
        <p>Show it a photo of a road sign.</p>
      </header>
      <main>
        <section className="card photo" aria-labelledby="photo-heading">
          <h2 id="photo-heading">Photo</h2>
          {camera === "on" ? (
            <CameraView
              onPhoto={take}
              onClose={closeCamera}
              onProblem={(found) => {
                closeCamera();
                setProblem(found);
              }}
            />
          ) : (
            <Source
              photo={photo}
              over={over}
              focusCamera={camera === "off"}
              onPhoto={take}
              onCamera={() => setCamera("on")}
            />
          )}
        </section>
        <section className="card answer" aria-labelledby="answer-heading" aria-busy={busy}>
          <h2 id="answer-heading">Answer</h2>
          <PlaceSwitch place={place} onChange={choosePlace} />
          {model.progress && <Loading progress={model.progress} />}
          {problem && <ProblemNote problem={problem} onClose={() => setProblem(null)} />}
          {answer && <Guesses answer={answer} />}
          {!answer && !problem && !model.progress && (
            <p className="hint">{busy ? "Looking …" : "Choose a photo, take one, or drop one here."}</p>
          )}
        </section>
        <Samples onPhoto={take} onProblem={setProblem} />
      </main>
      <Announcement answer={answer} />
      <footer>
        <p>
          {place === "server"
            ? "Your photo goes to the server that runs this page, and nowhere else."
            : "Your photo stays in this browser."}
        </p>
      </footer>
    </div>
  );
}

function Loading({ progress }: { progress: { loaded: number; total: number } }) {
  const { loaded, total } = progress;
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
  return (
    <div className="loading">
      <label htmlFor="loading">Loading the network into this browser</label>
      <progress id="loading" value={total ? loaded : undefined} max={total || undefined} />
      <span aria-hidden="true">
        {megabytes(loaded)} {total > 0 && `of ${megabytes(total)}`} MB
      </span>
    </div>
  );
}

/** Says the answer to those who listen to the page. */
function Announcement({ answer }: { answer: Answer | null }) {
  const [text, setText] = useState("");
  useEffect(() => {
    if (!answer) return setText("");
    const [best] = answer.guesses;
    setText(`${readable(best.label)}, ${percent(best.probability)}, ${answer.where}.`);
  }, [answer]);
  return (
    <p role="status" className="for-listeners">
      {text}
    </p>
  );
}
