// Asks a server with openai-node and the AI SDK; prints what they make of the answers, as one line of JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, asked, item] = process.argv.slice(2);
const options = { model: "tiny", temperature: 0, max_tokens: 60 };
const messages = [{ role: "user", content: asked }];
const Garment = z.object({ name: z.string().max(4), is_new: z.boolean() });
const parameters = { type: "object", properties: { item: { type: "string" } } };
const tools = [{ type: "function", function: { name: "query_price", description: "查询价格", parameters } }];
const question = [{ role: "user", content: `${item}多少钱？` }];

async function openaiNode() {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
  const told = await client.chat.completions.create({ ...options, messages });
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ ...options, messages, stream: true })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
  }
  const format = zodResponseFormat(Garment, "garment");
  const parsed = await client.chat.completions.parse({ ...options, messages, response_format: format });
  const called = await client.chat.completions
    .stream({ ...options, messages: question, tools, tool_choice: "required" })
    .finalMessage();
  const error = await client.chat.completions.create({ ...options, messages, model: "other" }).catch((error) => error);
  return {
    told: told.choices[0].message.content,
    streamed,
    parsed: Garment.safeParse(parsed.choices[0].message.parsed).success,
    called: JSON.parse(called.tool_calls[0].function.arguments),
    error: [error.constructor.name, error.status],
    response: (await client.responses.create({ model: "tiny", input: asked, temperature: 0 })).output_text,
  };
}

async function aiSdk() {
  const provider = createOpenAICompatible({
    name: "glmtune",
    baseURL: `${url}/v1`,
    apiKey: "none",
    supportsStructuredOutputs: true,
  });
  const shared = { model: provider("tiny"), temperature: 0, maxOutputTokens: 60, maxRetries: 0 };
  let streamed = "";
  for await (const part of streamText({ ...shared, prompt: asked }).textStream) streamed += part;
  const made = await generateObject({ ...shared, prompt: asked, schema: Garment });
  const query_price = tool({ description: "查询价格", inputSchema: z.object({ item: z.string() }) });
  const called = await generateText({
    ...shared,
    prompt: `${item}多少钱？`,
    tools: { query_price },
    toolChoice: "required",
    stopWhen: stepCountIs(1),
  });
  return {
    told: (await generateText({ ...shared, prompt: asked })).text,
    streamed,
    parsed: Garment.safeParse(made.object).success,
    called: called.toolCalls.map((call) => [call.toolName, typeof call.input.item]),
  };
}

console.log(JSON.stringify({ openai: await openaiNode(), ai: await aiSdk() }));
