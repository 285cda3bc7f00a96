// What the page of a service and a page without a server share: photographs come in, bars with names go out.
// All texts are set as text, never as HTML: a class may be called anything.
const settings = JSON.parse(document.getElementById('settings').textContent);
const at = id => document.getElementById(id);

function element(tag, className = '', text = '') {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function say(text) { at('status').textContent = text; }

async function thumbnail(blob, size = 480) {
  const picture = await createImageBitmap(blob, {imageOrientation: 'from-image'});
  const scale = Math.min(1, size/Math.max(picture.width, picture.height)), canvas = element('canvas');
  canvas.width = Math.max(1, Math.round(picture.width*scale));
  canvas.height = Math.max(1, Math.round(picture.height*scale));
  canvas.getContext('2d').drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return canvas;
}

function nameOf(answer) { return answer.name || `class ${answer.label}`; }

// The rows of the classes. `onChoose(answer, row)` is called for a pressed row; without it, rows are no buttons.
function bars(top, onChoose) {
  const list = element('ol');
  for (const answer of top) {
    const item = element('li'), row = element(onChoose ? 'button' : 'div', 'row');
    const name = element('span', '', nameOf(answer)), track = element('div', 'track'), bar = element('div', 'bar');
    name.dir = 'auto';
    row.append(name, element('span', '', `${(100*answer.score).toFixed(1)} %`));
    if (onChoose) {
      row.type = 'button';
      row.setAttribute('aria-pressed', 'false');
      row.addEventListener('click', () => onChoose(answer, row));
    }
    bar.style.width = `${100*answer.score}%`;
    track.append(bar);
    item.append(row, track);
    list.append(item);
  }
  return list;
}

// A pressed row shows its heat map in place of the photograph; pressed again, the photograph is back.
function mapSwitch(figure, photograph, blob, heatMap) {
  let pressed = null;
  const caption = figure.querySelector('figcaption'), fileName = caption.textContent;
  return async (answer, row) => {
    pressed?.setAttribute('aria-pressed', 'false');
    const off = pressed === row;
    pressed = off ? null : row;
    if (off) {
      figure.replaceChildren(photograph, caption);
      caption.textContent = fileName;
      return;
    }
    row.setAttribute('aria-pressed', 'true');
    caption.textContent = 'computing the heat map …';
    try {
      const picture = await heatMap(blob, answer.label);
      if (pressed !== row) return;
      picture.alt = `heat map of ${nameOf(answer)}`;
      figure.replaceChildren(picture, caption);
      caption.textContent = `What the network saw; red: what speaks for ${nameOf(answer)}.`;
    } catch (error) {
      if (pressed === row) caption.textContent = error.message;
    }
  };
}

async function show(blob, {classify, heatMap}) {
  const card = element('article'), figure = element('figure');
  figure.append(element('figcaption', '', blob.name || 'photograph'));
  card.append(figure);
  at('results').prepend(card);
  const message = element('p', '', 'waiting …');
  card.append(message);
  const photograph = await thumbnail(blob).catch(() => null);
  if (photograph) figure.prepend(photograph);
  try {
    const {top, note} = await classify(blob);
    const canMap = heatMap && photograph;
    message.replaceWith(bars(top, canMap ? mapSwitch(figure, photograph, blob, heatMap) : null));
    if (note) card.append(element('p', '', note));
  } catch (error) {
    message.className = 'error';
    message.textContent = error.message;
  }
}

let queue = Promise.resolve();

// Photographs are classified one after the other.
function take(blobs, actions) {
  for (const blob of blobs) queue = queue.then(() => show(blob, actions));
  return queue;
}

async function openCamera() {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: false, video: {facingMode: 'environment', width: {ideal: 1920}, height: {ideal: 1080}}});
  at('video').srcObject = stream;
  await at('video').play();
}

function closeCamera() {
  for (const track of at('video').srcObject?.getTracks() ?? []) track.stop();
  at('video').srcObject = null;
  at('live').hidden = true;
}

function takePicture() {
  const video = at('video'), canvas = element('canvas');
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext('2d').drawImage(video, 0, 0);
  return new Promise((done, failed) => canvas.toBlob(
    blob => blob ? done(new File([blob], 'camera', {type: blob.type})) : failed(new Error('the camera shows nothing')),
    'image/jpeg', .95));
}

function connectCamera(actions) {
  at('camera').addEventListener('click', async () => {
    if (!navigator.mediaDevices) {      // only pages from https or this machine have it; phones ask their camera
      at('capture').click();
      return;
    }
    try {
      at('live').hidden = false;
      await openCamera();
      say('');
    } catch (error) {
      closeCamera();
      say(`No camera: ${error.message}`);
    }
  });
  at('close').addEventListener('click', closeCamera);
  at('shoot').addEventListener('click', async () => {
    try {
      await take([await takePicture()], actions);
    } catch (error) {
      say(error.message);
    }
  });
}

// `actions.classify(blob)` → {top: [{label, name, score}, …], note}; `actions.heatMap(blob, label)` → an <img>, or none.
function startPage(actions) {
  const drop = at('drop');
  at('about').textContent = settings.about;
  at('privacy').textContent = settings.privacy;
  at(settings.heatMap ? 'hint' : 'reason').textContent = settings.maps;
  at('choose').addEventListener('click', () => at('files').click());
  for (const input of [at('files'), at('capture')]) {
    input.addEventListener('change', () => {
      take([...input.files], actions);
      input.value = '';
    });
  }
  document.addEventListener('dragover', event => {
    event.preventDefault();
    drop.classList.add('over');
  });
  document.addEventListener('dragleave', event => {
    if (!event.relatedTarget) drop.classList.remove('over');
  });
  document.addEventListener('drop', event => {
    event.preventDefault();
    drop.classList.remove('over');
    take([...event.dataTransfer.files], actions);
  });
  document.addEventListener('paste', event => take([...event.clipboardData.files], actions));
  connectCamera(actions);
}
