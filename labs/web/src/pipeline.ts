/** What happens to a picture in the browser, step by step: for the tests, and for lab 04. */
export { BrowserModel } from "./model/browser";
export { softmax, top } from "./model/answer";
export { decode } from "./picture/decode";
export { resize } from "./picture/resize";
export { toTensor, withoutAlpha } from "./picture/tensor";
