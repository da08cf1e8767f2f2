// What a user of npm's openai does.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const { SERVER, KEY } = process.env;
const client = new OpenAI({ baseURL: `${SERVER}/v1`, apiKey: KEY });
const small = { size: "64x64", steps: 4 };

const models = await client.models.list();
assert.equal((await client.models.retrieve(models.data[0].id)).owned_by, "darkroom");

const one = await client.images.generate({ prompt: "a fox", model: models.data[0].id, seed: 7, ...small });
const picture = Buffer.from(one.data[0].b64_json, "base64");
assert.equal(picture.readUInt32BE(16), 64);
assert.equal(one.usage.total_tokens, one.usage.input_tokens + one.usage.output_tokens);
const two = await client.images.generate({ prompt: "a fox", n: 2, seed: 6, ...small });
assert.equal(two.data[1].b64_json, one.data[0].b64_json);

const linked = await client.images.generate({ prompt: "a fox", model: "dall-e-3", size: "1024x1024" });
const fetched = Buffer.from(await (await fetch(linked.data[0].url)).arrayBuffer());
assert.equal(fetched.readUInt32BE(16), 1024);

const image = await toFile(picture, "a.png", { type: "image/png" });
const edited = await client.images.edit({ image, prompt: "an owl", n: 2, quality: "low", seed: 3 });
assert.equal(edited.data.length, 2);
await client.images.edit({ image: [image], prompt: "an owl", steps: 4 });
await assert.rejects(client.images.edit({ image: [image, image], prompt: "an owl" }), { status: 400, param: "image" });
assert.equal((await client.images.createVariation({ image, n: 1 })).data.length, 1);

const kinds = [];
const stream = await client.images.generate({
  prompt: "a fox, slow",
  stream: true,
  partial_images: 2,
  size: "64x64",
  steps: 40,
});
for await (const event of stream) {
  kinds.push(event.type);
  assert.equal(event.size, "64x64");
}
assert.equal(kinds.at(-1), "image_generation.completed");
await assert.rejects(
  async () => {
    for await (const event of await client.images.generate({ prompt: "a fox, fail", stream: true })) assert.fail(event);
  },
  { code: "generation_failed" },
);

await assert.rejects(client.images.generate({ prompt: "a fox", size: "huge" }), { status: 400, param: "size" });
await assert.rejects(client.images.generate({ prompt: "a fox", model: "nothing" }), { code: "model_not_found" });
const large = await toFile(Buffer.alloc(10_000_000), "a.png", { type: "image/png" });
await assert.rejects(client.images.edit({ image: large, prompt: "a fox" }), { status: 413 });
const bare = new OpenAI({ baseURL: SERVER, apiKey: KEY });
assert.equal((await bare.images.generate({ prompt: "a fox", ...small })).data.length, 1);
