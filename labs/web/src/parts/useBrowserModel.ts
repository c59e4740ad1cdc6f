import { useCallback, useRef, useState } from "react";

import type { BrowserModel } from "../model/browser";

/** The network in this browser: loaded when it is first wanted, once, with its progress. */
export function useBrowserModel() {
  const [progress, setProgress] = useState<{ loaded: number; total: number } | null>(null);
  const loading = useRef<Promise<BrowserModel> | null>(null);

  const ready = useCallback(() => {
    loading.current ??= load().catch((error) => {
      loading.current = null; // so that the next try starts afresh
      throw error;
    });
    return loading.current;

    async function load() {
      setProgress({ loaded: 0, total: 0 });
      try {
        // Imported here, so that the page for those who ask the server stays small.
        const { BrowserModel } = await import("../model/browser");
        return await BrowserModel.load((loaded, total) => setProgress({ loaded, total }));
      } finally {
        setProgress(null);
      }
    }
  }, []);

  return { ready, progress };
}
