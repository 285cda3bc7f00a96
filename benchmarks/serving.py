"""Compares dynamic batching with one-at-a-time serving: requests a second and latency under load, on loopback.

Three services with the same exported network, each in a separate process, answer the same clients in turns: 'batches'
(the default of ppcls serve), 'no batches' (--max-batch 1: images are still decoded while the network runs), and 'one at
a time' (a request is read after the previous one has been answered). N clients send requests on open connections, each
again after its answer. Their answers are checked to be equal first. The table has medians over the rounds, and the
ratio of the requests a second to those of one at a time in the same round.

python benchmarks/serving.py [NETWORK:PIXELS …] [--clients 1 4 16 64] [--rounds 4] [--seconds 2] [--figure FILE]
"""
import argparse, asyncio, json, re, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import cv2, numpy as np, paddle
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.serve import Limits, create_app
from ppcls_nb.deploy.server import Server, take_port, warm_up
from ppcls_nb.models import create_model

SERVICES = {'batches': dict(max_batch=16), 'no batches': dict(max_batch=1),
            'one at a time': dict(max_batch=1, workers=1)}


class OneAtATime:
    "ASGI middleware: a request waits until the previous one has been answered."
    def __init__(self, app): self.app, self.lock = app, asyncio.Lock()

    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        async with self.lock:
            await self.app(scope, receive, send)


def run_server(folder, service):
    "Serve until a signal; runs in a separate process."
    app = create_app(folder, Limits(max_requests=1000, max_queue=1000, deadline=60.), **SERVICES[service])
    if service == 'one at a time':
        app.add_middleware(OneAtATime)
    warm_up(app.state.service)
    with take_port('127.0.0.1', 0) as sock:
        print(f'port {sock.getsockname()[1]}', flush=True)
        Server(app).run([sock])


def start(folder, service, processes):
    "Start a service, whose process is added to `processes`; returns its port."
    command = [sys.executable, __file__, '--server', str(folder), service]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes.append(process)
    for line in process.stdout:
        found = re.match(r'port (\d+)', line)
        if found:
            return int(found[1])
    raise SystemExit(f'the service {service} did not start: {process.stderr.read()[-500:]}')


def photo(seed):
    "A JPEG file of 500 x 375 pixels."
    noise = np.random.default_rng(seed).integers(0, 255, (375, 500, 3), np.uint8)
    return cv2.imencode('.jpg', cv2.GaussianBlur(noise, (0, 0), 4))[1].tobytes()


def request(data):
    "The bytes of a request with one file."
    body = (b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: '
            b'image/jpeg\r\n\r\n' + data + b'\r\n--x--\r\n')
    return ('POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: '
            f'{len(body)}\r\n\r\n'.encode() + body)


async def send_request(reader, writer, raw):
    "The answer to a request on an open connection; anything but status 200 is an error."
    writer.write(raw)
    head = await reader.readuntil(b'\r\n\r\n')
    body = await reader.readexactly(int(re.search(rb'content-length: (\d+)', head, re.I)[1]))
    if not head.startswith(b'HTTP/1.1 200'):
        raise SystemExit(f'a request failed: {head + body}')
    return body


async def load(port, raws, clients, seconds):
    "Latencies in seconds of all requests that `clients` clients get answered within `seconds`."
    took = []

    async def client(i):
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        n, begin = i, time.perf_counter()
        while begin < end:
            await send_request(reader, writer, raws[n % len(raws)])
            n, now = n + 1, time.perf_counter()
            took.append(now - begin)
            begin = now
        writer.close()

    end = time.perf_counter() + seconds
    await asyncio.gather(*map(client, range(clients)))
    return took, time.perf_counter() - end + seconds


def answers(port, raws):
    "[(labels, scores), …] of a service for requests that are sent at the same time."
    async def one(raw):
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        top = json.loads(await send_request(reader, writer, raw))['predictions'][0]['top']
        writer.close()
        return [t['label'] for t in top], [t['score'] for t in top]

    async def every(): return await asyncio.gather(*map(one, raws))

    return asyncio.run(every())


def check_equal(ports, raws):
    "Exit if the answers of the services differ; returns the number of requests."
    results = {service: answers(port, raws) for service, port in ports.items()}
    for service in results:
        for (labels, scores), (other, theirs) in zip(results[service], results['one at a time']):
            if labels != other or not np.allclose(scores, theirs, rtol=1e-3, atol=1e-6):
                raise SystemExit(f'{service} answers {labels} {scores}, one at a time {other} {theirs}')
    return len(raws)


def time_interleaved(ports, raws, clients, args):
    "Service → [(requests a second, p50, p99 in ms) of each round]; the services take turns."
    rounds = {service: [] for service in ports}
    for i in range(args.rounds + 1):                                   # the first one warms up
        for service in [*ports][::1 if i % 2 else -1]:
            took, seconds = asyncio.run(load(ports[service], raws, clients, args.seconds if i else .3))
            if i:
                rounds[service].append((len(took)/seconds, *np.percentile(took, (50, 99))*1e3))
    return rounds


def measure(name, size, args):
    "Print the table of a network; returns clients → rounds."
    with tempfile.TemporaryDirectory() as tmp:
        paddle.seed(0)
        folder = export_model(create_model(name), Path(tmp)/'net', eval_ops(size))
        processes, raws, table = [], [request(photo(i)) for i in range(32)], {}
        try:
            ports = {service: start(folder, service, processes) for service in SERVICES}
            print(f'{name}, {size} px, 1000 classes, one JPEG file of 500 x 375 a request; answers to '
                  f'{check_equal(ports, raws)} requests at once are equal', flush=True)
            print(f'{"clients":>7s}  '
                  f'{"":14s}{"requests/s":>12s}{"ratio (smallest, largest)":>28s}{"p50 ms":>9s}{"p99 ms":>9s}')
            for clients in args.clients:
                table[clients] = rounds = time_interleaved(ports, raws, clients, args)
                for service, found in rounds.items():
                    speed, p50, p99 = (statistics.median(column) for column in zip(*found))
                    ratios = [a[0]/b[0] for a, b in zip(found, rounds['one at a time'])]
                    print(f'{clients:7d}  {service:14s}{speed:12.1f}{statistics.median(ratios):12.2f} '
                          f'({min(ratios):5.2f}, {max(ratios):5.2f}){p50:9.1f}{p99:9.1f}', flush=True)
        finally:
            for process in processes:
                process.terminate()
            codes = [process.wait(30) for process in processes]
    if any(codes):
        raise SystemExit(f'services ended with {codes}')
    return table


def draw(tables, file):
    "Requests a second, and latencies, against clients, a row a network."
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(len(tables), 2, figsize=(9, 3.2*len(tables)), squeeze=False)
    for (left, right), (name, table) in zip(axes, tables.items()):
        for n, service in enumerate(SERVICES):
            speed, p50, p99 = np.array([np.median(rounds[service], 0) for rounds in table.values()]).T
            left.plot([*table], speed, f'C{n}-o', label=service)
            right.plot([*table], p50, f'C{n}-o', label=f'{service}: half')
            right.plot([*table], p99, f'C{n}:', label=f'{service}: 99 of 100')
        left.set(title=name, xlabel='clients', ylabel='requests a second', xscale='log', ylim=(0, None))
        right.set(title=name, xlabel='clients', ylabel='ms', xscale='log', yscale='log')
        for ax in (left, right):
            ax.legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(file, dpi=120)


def main():
    if sys.argv[1:2] == ['--server']:
        return run_server(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', metavar='NETWORK:PIXELS', default=['MobileNetV3_large_x1_0:224'])
    parser.add_argument('--clients', type=int, nargs='+', default=[1, 16])
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--seconds', type=float, default=1.5, help='of a round')
    parser.add_argument('--figure', type=Path)
    args = parser.parse_args()
    print(f'paddle {paddle.__version__}, {ppcls_nb.set_threads()} threads, median of {args.rounds} rounds of '
          f'{args.seconds:g} s, the services in turns; ratio: of requests a second, to one at a time')
    tables = {}
    for case in args.networks:
        name, size = case.rsplit(':', 1)
        tables[case] = measure(name, int(size), args)
    if args.figure:
        draw(tables, args.figure)


if __name__ == '__main__': main()
