// Greedy completions by llama.cpp of the prompts on standard input, one JSON object a line:
//   {"prompt": "...", "stops": ["\n\n"], "tokens": 256, "special": true}
// Prints {"text", "tokens", "reason", "seconds"} for each. `npm install node-llama-cpp` brings
// llama.cpp compiled; NODE_PATH or the working folder says where it is.
//
//   node bench/peers/llama_texts.mjs model.gguf [threads] < prompts.jsonl

import readline from "node:readline";
import path from "node:path";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const require = createRequire(path.join(process.env.NODE_PATH ?? process.cwd(), "x.js"));
const {getLlama, LlamaCompletion} = await import(pathToFileURL(require.resolve("node-llama-cpp")));

const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: process.argv[2]});
const context = await model.createContext({
    contextSize: 4096,
    threads: Number(process.argv[3] ?? 0),  // 0: one for each core
});
const completion = new LlamaCompletion({contextSequence: context.getSequence()});

for await (const line of readline.createInterface({input: process.stdin})) {
    const request = JSON.parse(line);
    // Beginning-of-text is added where the model's own tokenizer adds it.
    const tokens = model.tokenize(request.prompt, request.special);
    const begin = performance.now();
    const result = await completion.generateCompletionWithMeta(tokens, {
        maxTokens: request.tokens,
        temperature: 0,
        customStopTriggers: request.stops,
    });
    console.log(JSON.stringify({
        text: result.response,
        tokens: model.tokenize(result.response).length,
        reason: result.metadata.stopReason,
        seconds: (performance.now() - begin) / 1e3,
    }));
}
process.exit(0);
