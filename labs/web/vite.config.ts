import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// Cross-origin isolation, which WebAssembly threads need. In production our Flask application sends the same headers.
const isolated = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

export default defineConfig({
  base: "./",
  plugins: [react()],
  // ONNX Runtime Web offers itself with its WebAssembly packed inside; we want the file, to serve it and to show progress.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser"] },
  build: {
    target: "es2022",
    outDir: process.env.DEPLOYLAB_WEB_OUT ?? "dist",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    rollupOptions: {
      preserveEntrySignatures: "strict",
      // Besides the page: its preprocessing and model as one module, which the tests and the lab import in the browser.
      input: { index: "index.html", pipeline: "src/pipeline.ts" },
      output: { entryFileNames: (chunk) => (chunk.name === "pipeline" ? "[name].js" : "assets/[name]-[hash].js") },
    },
  },
  server: {
    headers: isolated,
    proxy: Object.fromEntries(["/v1", "/model"].map((path) => [path, process.env.DEPLOYLAB_URL ?? "http://127.0.0.1:8000"])),
  },
  test: { include: ["tests/**/*.test.ts"] },
} as Parameters<typeof defineConfig>[0]);
