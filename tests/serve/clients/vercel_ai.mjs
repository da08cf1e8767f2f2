// What a user of Vercel's ai does.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

const { SERVER, KEY } = process.env;
const darkroom = createOpenAICompatible({ name: "darkroom", baseURL: `${SERVER}/v1`, apiKey: KEY });
const { data } = await (await fetch(`${SERVER}/v1/models`, { headers: { authorization: `Bearer ${KEY}` } })).json();
const model = darkroom.imageModel(data[0].id);

const made = await generateImage({
  model,
  prompt: "a fox",
  size: "64x64",
  n: 2,
  providerOptions: { darkroom: { steps: 4, seed: 7 } },
});
assert.equal(made.images.length, 2);
assert.equal(Buffer.from(made.images[0].base64, "base64").readUInt32BE(16), 64);
assert.notEqual(made.images[0].base64, made.images[1].base64);

const edited = await generateImage({
  model,
  prompt: { text: "an owl", images: [made.images[0].uint8Array] },
  providerOptions: { darkroom: { steps: 4 } },
});
assert.equal(edited.images.length, 1);
await assert.rejects(generateImage({ model: darkroom.imageModel("nothing"), prompt: "a fox" }), /nothing/);
