"""A headless Chromium for tests of pages: opens them, fills in files, and records what they log and request.

Chromium is driven by its DevTools protocol through two pipes, so that no port and no further package is needed."""
import base64, json, os, select, shutil, subprocess, sys, tempfile, time
from itertools import count
from pathlib import Path

import pytest

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason='Chromium is not installed: apt-get install chromium')
FLAGS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
         '--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage', '--mute-audio',
         '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream', '--remote-debugging-pipe')
# Chromium reads commands from file descriptor 3 and writes answers to 4
START = ('import os, sys; pipes = [os.dup(int(fd)) for fd in sys.argv[1:3]]; '
         'os.dup2(pipes[0], 103); os.dup2(pipes[1], 104); os.dup2(103, 3); os.dup2(104, 4); '
         'os.closerange(5, 200); os.execv(sys.argv[3], sys.argv[3:])')


class BrowserError(Exception):
    "A command that Chromium refused, a script that failed, or a condition that did not come true."


class Browser:
    """A Chromium process with a profile of its own; a context manager. `page()` opens a page in it. `timeout`: seconds
    after which something that does not happen is an error; no test depends on how long things take."""
    def __init__(self, timeout=300.):
        self.timeout = timeout
        self.profile = tempfile.mkdtemp(prefix='chromium-')
        commands, to_chromium = os.pipe()
        from_chromium, answers = os.pipe()
        command = [sys.executable, '-c', START, str(commands), str(answers), CHROMIUM, *FLAGS,
                   f'--user-data-dir={self.profile}', 'about:blank']
        self.process = subprocess.Popen(command, pass_fds=(commands, answers), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        self.output, self.input, self.received = to_chromium, from_chromium, b''
        self.numbers, self.pages = count(1), {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.send('Browser.close')
            self.process.wait(10)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.output)
        os.close(self.input)
        shutil.rmtree(self.profile, ignore_errors=True)

    def next_message(self, until):
        "The next message of Chromium before the time `until`; None if there is none."
        while b'\0' not in self.received:
            if not select.select([self.input], [], [], max(0, until - time.monotonic()))[0]:
                return None
            data = os.read(self.input, 1 << 20)
            if not data:
                raise BrowserError('Chromium has ended')
            self.received += data
        message, _, self.received = self.received.partition(b'\0')
        return json.loads(message)

    def post(self, method, session=None, **params):
        "Send a command of the DevTools protocol and return its number, without waiting for the result."
        message = {'id': next(self.numbers), 'method': method, 'params': params}
        if session:
            message['sessionId'] = session
        os.write(self.output, json.dumps(message).encode() + b'\0')
        return message['id']

    def send(self, method, session=None, **params):
        "The result of a command of the DevTools protocol; events that arrive before it go to their pages."
        number = self.post(method, session, **params)
        until = time.monotonic() + self.timeout
        while True:
            message = self.next_message(until)
            if message is None:
                raise BrowserError(f'{method}: no answer in {self.timeout:g} s')
            if message.get('id') == number:
                break
            self.take_event(message)
        if 'error' in message:
            raise BrowserError(f"{method}: {message['error']['message']}")
        return message['result']

    def take_event(self, message):
        "Give an event to the page that it belongs to."
        page = self.pages.get(message.get('sessionId'))
        if page and 'method' in message:
            page.take_event(message['method'], message['params'])

    def page(self, width=1024, height=768, dark=False):
        "A new page whose window has this size in pixels."
        target = self.send('Target.createTarget', url='about:blank', newWindow=True)['targetId']
        session = self.send('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        page = self.pages[session] = Page(self, session)
        for domain in ('Page', 'Runtime', 'Network', 'DOM', 'Log'):
            page.send(f'{domain}.enable')
        page.send('Target.setAutoAttach', autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        page.send('Emulation.setScrollbarsHidden', hidden=True)
        page.viewport(width, height, dark)
        return page


class Page:
    """A page of a `Browser`. Attributes: `errors`, the texts of the errors and warnings in its console, and of uncaught
    exceptions; `requests`, the addresses that it asked for. Those of its workers are among them. Both are emptied by
    `goto` and `reload`."""
    def __init__(self, browser, session):
        self.browser = browser
        self.session = session
        self.errors, self.requests, self.loaded = [], [], False

    def send(self, method, **params):
        "The result of a command of the DevTools protocol for this page."
        return self.browser.send(method, self.session, **params)

    def take_event(self, method, params):
        "Record what an event of the DevTools protocol says."
        if method == 'Page.loadEventFired':
            self.loaded = True
        if method == 'Target.attachedToTarget':
            self.attach_worker(params['sessionId'])
        if method == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])
        if method == 'Runtime.exceptionThrown':
            details = params['exceptionDetails']
            self.errors.append(details.get('exception', {}).get('description', details['text']))
        if method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning', 'assert'):
            self.errors.append(' '.join(str(a.get('value', a.get('description'))) for a in params['args']))
        if method == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
            entry = params['entry']
            self.errors.append(f"{entry['text']} {entry.get('url', '')}".strip())

    def attach_worker(self, session):
        "Record what a worker does, which waits for this."
        self.browser.pages[session] = self
        for command in ('Runtime.enable', 'Network.enable', 'Log.enable', 'Runtime.runIfWaitingForDebugger'):
            self.browser.post(command, session)

    def viewport(self, width, height=768, dark=False):
        "Set the size of the window in pixels, and whether the system asks for dark colours."
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self.send('Emulation.setEmulatedMedia', features=[scheme])

    def goto(self, url):
        "Open an address and wait until the page is loaded; `BrowserError` if it cannot be."
        self.errors, self.requests, self.loaded = [], [], False
        failure = self.send('Page.navigate', url=str(url)).get('errorText')
        if failure:
            raise BrowserError(f'{url}: {failure}')
        self.wait_loaded()

    def reload(self):
        "Load the page again and wait until it is loaded."
        self.errors, self.requests, self.loaded = [], [], False
        self.send('Page.reload')
        self.wait_loaded()

    def wait_loaded(self):
        "Take events until the page is loaded."
        until = time.monotonic() + self.browser.timeout
        while not self.loaded:
            message = self.browser.next_message(until)
            if message is None:
                raise BrowserError('the page was not loaded in time')
            self.browser.take_event(message)

    def evaluate(self, script):
        "The value of a JavaScript expression, or of the promise that it gives, as JSON; `BrowserError` if it throws."
        found = self.send('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in found:
            details = found['exceptionDetails']
            raise BrowserError(details.get('exception', {}).get('description', details['text']))
        return found['result'].get('value')

    def wait_for(self, script):
        "The first value of a JavaScript expression that is true; an element, which is no JSON, counts as true."
        until = time.monotonic() + self.browser.timeout
        while time.monotonic() < until:
            value = self.evaluate(script)
            if value or isinstance(value, dict):
                return value
            time.sleep(.05)
        raise BrowserError(f'not true in {self.browser.timeout:g} s: {script}')

    def set_file_input(self, selector, files):
        "Choose `files` in the input of files that the CSS `selector` finds, as a person would."
        root = self.send('DOM.getDocument')['root']['nodeId']
        node = self.send('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.send('DOM.setFileInputFiles', nodeId=node, files=[str(Path(file).resolve()) for file in files])

    def drop(self, selector, files):
        "Drag `files` onto the middle of the element that the CSS `selector` finds, and drop them."
        x, y = self.evaluate(f"""(box => [box.x + box.width/2, box.y + box.height/2])(
            document.querySelector({json.dumps(selector)}).getBoundingClientRect())""")
        data = {'items': [], 'files': [str(Path(file).resolve()) for file in files], 'dragOperationsMask': 1}
        for kind in ('dragEnter', 'dragOver', 'drop'):
            self.send('Input.dispatchDragEvent', type=kind, x=x, y=y, data=data)

    def screenshot(self, path):
        "Write a picture of the whole page, PNG, to `path`."
        data = self.send('Page.captureScreenshot', captureBeyondViewport=True)['data']
        Path(path).write_bytes(base64.b64decode(data))

    def overflow(self):
        "By how many pixels the page is wider than its window."
        return self.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth')

    def close(self):
        "Close the page."
        self.send('Page.close')
        self.browser.pages = {session: page for session, page in self.browser.pages.items() if page is not self}
