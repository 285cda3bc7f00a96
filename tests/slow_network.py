"What the workers of a test's service add to their app: networks that take their time, and the number of the process."
import os, time


def slow(app, seconds):
    "Let the network take `seconds`, and add GET /pid."
    service = app.state.service
    network = service.batcher.run

    def slow_network(images):
        time.sleep(seconds)
        return network(images)
    service.batcher.run = slow_network
    app.get('/pid')(os.getpid)
