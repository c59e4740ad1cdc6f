import { useEffect, useState } from "react";

import { describe, type Description } from "../model/description";
import { asProblem, type Problem } from "../problem";

interface Props {
  onPhoto: (file: File) => void;
  onProblem: (problem: Problem) => void;
}

/** A few photos to try, for those who have no road sign at hand. */
export function Samples({ onPhoto, onProblem }: Props) {
  const [samples, setSamples] = useState<Description["samples"]>([]);
  useEffect(() => {
    describe().then(({ samples }) => setSamples(samples), () => setSamples([]));
  }, []);
  if (samples.length === 0) return null;

  async function choose(name: string, url: string) {
    try {
      const blob = await (await fetch(url)).blob();
      onPhoto(new File([blob], name, { type: blob.type }));
    } catch (error) {
      onProblem(asProblem(error));
    }
  }

  return (
    <section className="samples" aria-labelledby="samples-heading">
      <h2 id="samples-heading">Or try one of these</h2>
      <ul>
        {samples.map(({ name, url }, index) => (
          <li key={url}>
            <button type="button" onClick={() => void choose(name, url)}>
              <img src={url} alt={`Sample photo ${index + 1}`} loading="lazy" width="640" height="480" />
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
