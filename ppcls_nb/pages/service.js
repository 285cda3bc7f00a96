// The page of a service: photographs are posted to it, one in a request.
const wait = seconds => new Promise(done => setTimeout(done, 1000*seconds));

// The answer of the service to a photograph. A busy one (503) is asked again, as it says when.
async function post(path, blob, attempts = 5) {
  const form = new FormData();
  form.append('image', blob, 'photograph');
  const answer = await fetch(path, {method: 'POST', body: form}).catch(() => {
    throw new Error('The service does not answer.');
  });
  if (answer.ok) return answer;
  if (answer.status === 503 && attempts > 1) {
    await wait(Number(answer.headers.get('Retry-After')) || 1);
    return post(path, blob, attempts - 1);
  }
  const {error} = await answer.json().catch(() => ({}));
  throw new Error(error || `The service answers ${answer.status}.`);
}

async function classify(blob) {
  const {predictions} = await (await post('predict?topk=5', blob)).json();
  return {top: predictions[0].top};
}

async function heatMap(blob, label) {
  const answer = await post(`heatmap?label=${label}`, blob), picture = new Image();
  picture.src = URL.createObjectURL(await answer.blob());
  await picture.decode();
  URL.revokeObjectURL(picture.src);
  return picture;
}

startPage({classify, heatMap: settings.heatMap ? heatMap : null});
