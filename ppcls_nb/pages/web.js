// A page without a server: it stores its files in this browser, and a worker runs the network.
const waiting = new Map();
let worker, sent = 0;

// Resolves when all files are stored; an Error says why they cannot be.
async function store() {
  if (!navigator.serviceWorker) throw new Error('only pages from https or this machine can be stored');
  const registration = await navigator.serviceWorker.register('service-worker.js');
  const next = registration.installing;
  if (registration.active || !next) return;
  await new Promise((done, failed) => next.addEventListener('statechange', () => {
    if (next.state === 'activated') done();
    if (next.state === 'redundant') failed(new Error('a file could not be stored'));
  }));
}

function startWorker() {
  worker = new Worker('classify.js', {type: 'module'});
  return new Promise((done, failed) => {
    worker.onerror = event => failed(new Error(event.message || 'the program does not run in this browser'));
    worker.onmessage = ({data}) => {
      if (data.ready) done();
      if (data.failed) failed(new Error(data.failed));
      const {resolve, reject} = waiting.get(data.id) ?? {};
      waiting.delete(data.id);
      if (data.error) reject?.(new Error(data.error));
      else resolve?.(data);
    };
  });
}

const started = (async () => {
  say(`Loading ${settings.megabytes} MB, once …`);
  const stored = await store().then(() => 'This page also works offline.',
    error => `This page needs a connection each time: ${error.message}.`);
  await startWorker();
  return `Ready. ${stored}`;
})();

async function classify(blob) {
  await started;
  return new Promise((resolve, reject) => {
    sent += 1;
    waiting.set(sent, {resolve, reject});
    worker.postMessage({id: sent, blob});
  });
}

startPage({classify, heatMap: null});
started.then(say, error => say(`This page cannot start: ${error.message}.`));
