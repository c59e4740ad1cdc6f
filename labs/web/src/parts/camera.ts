import { Problem } from "../problem";

/** Open the camera, the one at the back of a phone. Throws a Problem that says why it does not work. */
export async function openCamera(): Promise<MediaStream> {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem("This page may not use the camera.", "Browsers allow it on https:// and on localhost only.");
  }
  return navigator.mediaDevices
    .getUserMedia({ video: { facingMode: "environment" }, audio: false })
    .catch((error: DOMException) => {
      throw cameraProblem(error.name);
    });
}

/** What the names of getUserMedia's exceptions mean (W3C, "Media Capture and Streams"). */
export function cameraProblem(name: string): Problem {
  const other = "You can still choose a photo from a file.";
  switch (name) {
    case "NotAllowedError":
      return new Problem("The camera was not allowed.", `Allow it in the browser's site settings. ${other}`);
    case "NotFoundError":
    case "OverconstrainedError":
      return new Problem("There is no camera here.", other);
    case "NotReadableError":
      return new Problem("The camera is in use by another program.", `Close that program and try again. ${other}`);
    default:
      return new Problem("The camera did not start.", other);
  }
}

/** The frame shown now, as a JPEG file. */
export async function takePhoto(video: HTMLVideoElement): Promise<File> {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d")!.drawImage(video, 0, 0);
  const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  if (!blob) throw new Problem("The camera gave no picture.", "Try again.");
  return new File([blob], "camera.jpg", { type: "image/jpeg" });
}
