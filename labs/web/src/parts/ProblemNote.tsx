import type { Problem } from "../problem";

/** An error as a message. `role="alert"`: screen readers say it at once. */
export function ProblemNote({ problem, onClose }: { problem: Problem; onClose: () => void }) {
  return (
    <div role="alert" className="problem">
      <p>
        <strong>{problem.what}</strong> {problem.advice}
      </p>
      <button type="button" aria-label="Close this message" onClick={onClose}>
        ×
      </button>
    </div>
  );
}
