import { Problem } from "../problem";
import type { Pixels } from "./resize";
import { withoutAlpha } from "./tensor";

/** The same bounds as the server's. */
export const MAX_BYTES = 20_000_000;
export const MAX_PIXELS = 50_000_000;

const ADVICE = "Choose a photo in the format JPEG, PNG or WebP.";

/** Refuse what cannot be a picture before anything is decoded or sent. */
export async function checkPicture(file: Blob): Promise<void> {
  if (file.size === 0) throw new Problem("The file is empty.", ADVICE);
  if (file.size > MAX_BYTES) {
    throw new Problem(
      `The file is too large: ${megabytes(file.size)}.`,
      `At most ${megabytes(MAX_BYTES)} are accepted. Choose a smaller photo.`,
    );
  }
  if (!isPicture(new Uint8Array(await file.slice(0, 12).arrayBuffer()))) {
    throw new Problem("This file is not a picture.", ADVICE);
  }
}

/** Whether a file begins as a JPEG, PNG or WebP file does. */
export function isPicture(head: Uint8Array): boolean {
  const text = String.fromCharCode(...head);
  return (
    text.startsWith("\xff\xd8\xff") ||
    text.startsWith("\x89PNG\r\n\x1a\n") ||
    (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP")
  );
}

/**
 * Decode a picture to R, G, B as `deploylab.image.decode` does: upright according to its EXIF orientation, without a
 * conversion of its colours, transparent pixels laid over white.
 */
export async function decode(file: Blob): Promise<Pixels> {
  const bitmap = await createImageBitmap(file, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
  }).catch(() => {
    throw new Problem("The picture is damaged.", "It cannot be decoded. " + ADVICE);
  });
  const { width, height } = bitmap;
  try {
    if (width * height > MAX_PIXELS) {
      throw new Problem(`The picture is too large: ${width} × ${height} pixels.`, "Choose a smaller photo.");
    }
    const context = canvas(width, height);
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    return withoutAlpha(context.getImageData(0, 0, width, height).data, width, height);
  } finally {
    bitmap.close();
  }
}

function canvas(width: number, height: number): CanvasRenderingContext2D {
  const element = document.createElement("canvas");
  element.width = width;
  element.height = height;
  // Read back once, so keep it in main memory: a GPU may round colours in its own way.
  const context = element.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Problem("This browser cannot read pictures.", "Switch to “Server”.");
  return context;
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
