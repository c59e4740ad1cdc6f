import { useEffect, useState } from "react";

interface Props {
  photo: File | null;
  over: boolean;
  /** The camera was just closed: its button gets the focus back. */
  focusCamera: boolean;
  onPhoto: (file: File) => void;
  onCamera: () => void;
}

/** The photo that was asked about, and the ways to give another one. */
export function Source({ photo, over, focusCamera, onPhoto, onCamera }: Props) {
  const url = useObjectUrl(photo);
  const [shown, setShown] = useState(true);
  useEffect(() => setShown(true), [url]);

  return (
    <div className={over ? "stage over" : "stage"}>
      <div className="picture">
        {url && shown ? (
          <img src={url} alt={`Your photo: ${photo?.name}`} onError={() => setShown(false)} />
        ) : (
          <p className="hint">{over ? "Let it go." : "Drop a photo here, or paste one."}</p>
        )}
      </div>
      <div className="buttons">
        <input
          id="file"
          className="for-listeners"
          type="file"
          accept="image/jpeg,image/png,image/webp"
          onChange={(event) => {
            const file = event.target.files?.[0];
            event.target.value = ""; // so that the same file can be chosen again
            if (file) onPhoto(file);
          }}
        />
        <label htmlFor="file" className="button primary">
          Choose a photo
        </label>
        <button type="button" className="button" autoFocus={focusCamera} onClick={onCamera}>
          Use the camera
        </button>
      </div>
    </div>
  );
}

function useObjectUrl(file: File | null): string | null {
  const [url, setUrl] = useState<string | null>(null);
  useEffect(() => {
    if (!file) return setUrl(null);
    const made = URL.createObjectURL(file);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [file]);
  return url;
}
