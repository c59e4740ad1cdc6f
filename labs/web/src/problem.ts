/** Something went wrong that the user can do something about: what, and what to do. */
export class Problem extends Error {
  constructor(
    readonly what: string,
    readonly advice: string,
  ) {
    super(`${what} ${advice}`);
  }
}

/** Any error as a Problem; a failure nobody foresaw keeps its own words. */
export function asProblem(error: unknown): Problem {
  if (error instanceof Problem) return error;
  const words = error instanceof Error ? error.message : String(error);
  return new Problem("Something unexpected happened.", words);
}
