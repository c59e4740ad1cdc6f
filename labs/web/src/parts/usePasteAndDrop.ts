import { useEffect, useRef, useState } from "react";

/** Take files that are pasted or dropped anywhere on the page. Returns whether one hovers over it now. */
export function usePasteAndDrop(onFile: (file: File) => void): boolean {
  const [over, setOver] = useState(false);
  const take = useRef(onFile);
  take.current = onFile;

  useEffect(() => {
    const first = (data: DataTransfer | null) => data?.files[0] && take.current(data.files[0]);
    const listeners = {
      dragover: (event: DragEvent) => {
        event.preventDefault(); // else the browser opens the file and leaves the page
        setOver(true);
      },
      dragleave: (event: DragEvent) => {
        if (event.relatedTarget === null) setOver(false);
      },
      drop: (event: DragEvent) => {
        event.preventDefault();
        setOver(false);
        first(event.dataTransfer);
      },
      paste: (event: ClipboardEvent) => void first(event.clipboardData),
    };
    const entries = Object.entries(listeners) as [string, EventListener][];
    entries.forEach(([name, listener]) => document.addEventListener(name, listener));
    return () => entries.forEach(([name, listener]) => document.removeEventListener(name, listener));
  }, []);

  return over;
}
