import { useEffect, useRef, useState } from "react";

import { openCamera, takePhoto } from "./camera";
import { asProblem, type Problem } from "../problem";

interface Props {
  onPhoto: (file: File) => void;
  onClose: () => void;
  onProblem: (problem: Problem) => void;
}

/** The live picture of the camera. The camera goes off when this is no longer shown. */
export function CameraView({ onPhoto, onClose, onProblem }: Props) {
  const video = useRef<HTMLVideoElement>(null);
  const [live, setLive] = useState(false);

  useEffect(() => {
    let stream: MediaStream | null = null;
    let left = false;
    const stop = () => stream?.getTracks().forEach((track) => track.stop());
    openCamera().then(
      (opened) => {
        stream = opened;
        if (left || !video.current) return stop();
        video.current.srcObject = opened;
        void video.current.play();
      },
      (error) => {
        if (!left) onProblem(asProblem(error));
      },
    );
    return () => {
      left = true;
      stop();
    };
  }, []);

  return (
    <div className="stage">
      <div className="picture">
        <video ref={video} muted playsInline aria-label="Live picture of the camera" onPlaying={() => setLive(true)} />
      </div>
      <div className="buttons">
        <button
          type="button"
          className="button primary"
          autoFocus
          aria-disabled={!live}
          onClick={() => live && takePhoto(video.current!).then(onPhoto, (error) => onProblem(asProblem(error)))}
        >
          {live ? "Take the photo" : "Starting the camera …"}
        </button>
        <button type="button" className="button" onClick={onClose}>
          Cancel
        </button>
      </div>
    </div>
  );
}
