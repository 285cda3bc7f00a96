"A service in threads of this process, for tests that need real sockets."
import signal, threading, time

import ppcls_nb  # before paddle: sets the threads
import cv2, httpx, numpy as np

from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.deploy.serve import create_app
from ppcls_nb.deploy.server import Server, take_port

JPEG = cv2.imencode('.jpg', np.full((40, 40, 3), 99, np.uint8))[1].tobytes()


class Running:
    "A server in a thread, whose network takes `seconds`."
    def __init__(self, folder, seconds=0., grace=20., extend=None, run=True, **settings):
        app = create_app(Predictor(folder), **settings)
        if extend:
            extend(app)
        self.service = app.state.service
        network = self.service.batcher.run
        def slow_network(images):
            time.sleep(seconds)
            return network(images)
        self.service.batcher.run = slow_network
        self.socket, self.server = take_port('127.0.0.1', 0), Server(app, grace)
        self.address = self.socket.getsockname()
        self.url = f'http://127.0.0.1:{self.address[1]}'
        self.threads, self.codes = [], []
        if run:
            self.run(lambda: self.server.run([self.socket]))

    def run(self, function):
        "Call `function`, which runs the server, in a thread; wait until the server has started."
        self.threads.append(threading.Thread(target=function))
        self.threads[-1].start()
        while not self.server.started:
            time.sleep(.01)

    def post(self): return httpx.post(f'{self.url}/predict', files={'image': JPEG}, timeout=20, verify=False)

    def send(self, n):
        "Send n requests at once; wait until all have been accepted."
        clients = [threading.Thread(target=lambda: self.codes.append(self.post().status_code)) for _ in range(n)]
        self.threads += clients
        for client in clients:
            client.start()
        while len(self.service.open_requests) + len(self.codes) < n:
            time.sleep(.005)

    def signal(self): self.server.handle_exit(signal.SIGTERM, None)

    def join(self):
        for thread in self.threads:
            thread.join()
        self.socket.close()
