// The worker of a page without a server: it holds the network and answers {id, blob} with {id, top} or {id, error}.
import * as ort from './onnxruntime.js';
import {prepare} from './image.js';

ort.env.wasm.numThreads = 1;                // more need headers that few static servers send
ort.env.wasm.wasmPaths = {wasm: new URL('onnxruntime.wasm', import.meta.url).href};

async function load(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  return answer;
}

async function open() {
  const [spec, file] = await Promise.all([
    load('network.json').then(answer => answer.json()), load('network.onnx').then(answer => answer.arrayBuffer())]);
  const options = {executionProviders: ['wasm'], logSeverityLevel: 3};       // errors only
  const session = await ort.InferenceSession.create(new Uint8Array(file), options);
  return {spec, session};
}

export function softmax(outputs) {
  const largest = outputs.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(outputs, value => Math.exp(value - largest)), sum = powers.reduce((a, b) => a + b, 0);
  return powers.map(value => value/sum);
}

async function classify(blob, {spec, session}, count = 5) {
  const {values, transparent} = await prepare(blob, spec);
  const input = new ort.Tensor('float32', values, [1, ...spec.shape]);
  const answers = await session.run({[session.inputNames[0]]: input});
  const {data} = answers[session.outputNames[0]], scores = spec.softmax ? Array.from(data) : softmax(data);
  if (!scores.every(Number.isFinite)) throw new Error('The outputs of the network are not finite.');
  const top = scores.map((score, label) => ({label, name: spec.names?.[label] ?? '', score}))
    .sort((a, b) => b.score - a.score).slice(0, count);
  const note = 'The picture has transparent parts, whose colours a browser does not keep: the result may differ.';
  return {top, note: transparent ? note : ''};
}

const opened = open();
opened.then(() => postMessage({ready: true}), error => postMessage({failed: error.message}));

let queue = Promise.resolve();

onmessage = ({data: {id, blob}}) => {
  queue = queue.then(async () => {
    try {
      postMessage({id, ...await classify(blob, await opened)});
    } catch (error) {
      postMessage({id, error: error.message});
    }
  });
};
