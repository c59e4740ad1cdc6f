import { Problem } from "../problem";

/** What the server tells about the network: `model/description.json`, written by deploylab.serving.web. */
export interface Description {
  model: string;
  labels: string[];
  size: number;
  samples: { name: string; url: string }[];
}

export async function describe(): Promise<Description> {
  const response = await fetch("model/description.json").catch(() => null);
  if (!response?.ok) throw new Problem("The network could not be loaded.", "Is the server still running?");
  return (await response.json()) as Description;
}
