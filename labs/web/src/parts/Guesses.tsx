import { type Answer, milliseconds, percent, readable } from "../model/answer";

/** The most probable classes as bars, and what the answer took. */
export function Guesses({ answer }: { answer: Answer }) {
  const { guesses, stages, totalMs, where } = answer;
  return (
    <>
      <ol className="guesses">
        {guesses.map(({ label, probability }) => (
          <li key={label} data-label={label}>
            <span className="name">{readable(label)}</span>
            <span className="value">{percent(probability)}</span>
            <span className="bar" aria-hidden="true">
              <span style={{ width: `${100 * probability}%` }} />
            </span>
          </li>
        ))}
      </ol>
      <p className="latency">
        <strong>{milliseconds(totalMs)}</strong> {where}
      </p>
      <details>
        <summary>Where the time went</summary>
        <dl>
          {stages.map(([name, ms]) => (
            <div key={name}>
              <dt>{readable(name)}</dt>
              <dd>{milliseconds(ms)}</dd>
            </div>
          ))}
        </dl>
      </details>
    </>
  );
}
