// Stores the files of the page in the browser, all of one version or none, and answers from there.
const FILES = {};                           // name: SHA-256 of the file, written by `ppcls web`
const VERSION = '';
const SCOPE = self.registration.scope;
const CACHE = `${SCOPE}${VERSION}`;
const TYPES = {html: 'text/html; charset=utf-8', js: 'text/javascript', json: 'application/json', png: 'image/png',
               wasm: 'application/wasm', onnx: 'application/octet-stream', txt: 'text/plain; charset=utf-8'};

async function digest(data) {
  const bytes = new Uint8Array(await crypto.subtle.digest('SHA-256', data));
  return Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('');
}

async function fetchFile(name) {
  const answer = await fetch(new URL(name, SCOPE), {cache: 'no-cache'});
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  const data = await answer.arrayBuffer();
  if (await digest(data) !== FILES[name]) throw new Error(`${name}: of another version`);
  return new Response(data, {headers: {'Content-Type': TYPES[name.split('.').pop()]}});
}

async function install() {
  const cache = await caches.open(CACHE);
  await Promise.all(Object.keys(FILES).map(async name => cache.put(new URL(name, SCOPE), await fetchFile(name))));
}

async function removeOldVersions() {
  for (const name of await caches.keys()) {
    const sameSite = name.startsWith(SCOPE) && !name.slice(SCOPE.length).includes('/');
    if (sameSite && name !== CACHE) await caches.delete(name);
  }
  await self.clients.claim();
}

async function answerFrom(name, request) {
  const cache = await caches.open(CACHE);
  return await cache.match(new URL(name, SCOPE)) ?? fetch(request);
}

self.addEventListener('install', event => event.waitUntil(install()));
self.addEventListener('activate', event => event.waitUntil(removeOldVersions()));
self.addEventListener('fetch', event => {
  const url = new URL(event.request.url), scope = new URL(SCOPE);
  if (event.request.method !== 'GET' || url.origin !== scope.origin || !url.pathname.startsWith(scope.pathname)) return;
  const name = url.pathname.slice(scope.pathname.length) || 'index.html';
  if (Object.hasOwn(FILES, name)) event.respondWith(answerFrom(name, event.request));
});
