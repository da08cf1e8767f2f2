// Asks for pictures whose connections break; every one must come all the same.
import { createHash } from "node:crypto";
import OpenAI from "openai";

const { SERVER, KEY } = process.env;
const client = new OpenAI({ baseURL: `${SERVER}/v1`, apiKey: KEY });
for (let i = 0; i < 10; i++) {
  const prompt = `fox ${i}${i < 3 ? ", slow" : ""}`;
  const answer = await client.images.generate({ prompt, size: "64x64", steps: 60 });
  const picture = Buffer.from(answer.data[0].b64_json, "base64");
  console.log(createHash("sha256").update(picture).digest("hex"));
}
