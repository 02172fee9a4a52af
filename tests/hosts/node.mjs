// node node.mjs MODEL IMAGE SIZES TARGET MAX_MASKS: prints the outputs as JSON.
import { readFileSync } from 'node:fs';
import ort from 'onnxruntime-node';
import { explain } from './explain.mjs';

const [model, image, sizes, target, maxMasks] = process.argv.slice(2);
const bytes = readFileSync(image);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
console.log(JSON.stringify(await explain(ort, model, values, JSON.parse(sizes), target, maxMasks)));
