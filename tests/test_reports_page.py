"The report of a course that was run by somebody else: whatever its cells left, the page runs and loads nothing."
import re

import nbformat, pytest
from bleach.html5lib_shim import HTMLParser
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from ppcls_nb.course.report import sanitize, to_fragment, write_report

# one entry for each way of running or loading something
HOSTILE = '''
<script>alert(1)</script>
<SCRIPT SRC=https://x.example/a.js></SCRIPT>
<scr<script>ipt>alert(1)</script>
<script	>alert(1)</script	>
<img src=x onerror=alert(1)>
<img/src="data:image/png;base64,AAAA"/onload=alert(1)>
<img src="data:text/html,<script>alert(1)</script>">
<img src="javascript:alert(1)">
<img srcset="https://x.example/a.png 2x" src="data:image/png;base64,AAAA">
<img dynsrc="https://x.example/a.png"><img lowsrc="//x.example/a.png">
<p onclick="alert(1)" onmouseover='alert(1)' ONFOCUS=alert(1) autofocus tabindex=1>text</p>
<a href="javascript:alert(1)">link</a>
<a href=" &#106;avascript:alert(1)">link</a>
<a href="java&#10;script:alert(1)">link</a>
<a href="javascript&colon;alert(1)">link</a>
<a href="&#1;javascript:alert(1)">link</a>
<a href="vbscript:msgbox(1)">link</a>
<a href="data:text/html;base64,PHNjcmlwdD4=">link</a>
<a href="d&#97;ta:text/html,<script>alert(1)</script>">link</a>
<a href="blob:https://x.example/1">link</a>
<a href="#" ping="https://x.example/">link</a>
<svg onload=alert(1)><script>alert(1)</script><image href="https://x.example/a.png"/></svg>
<svg><a xlink:href="javascript:alert(1)"><text y="9">text</text></a></svg>
<svg><use href="data:image/svg+xml,<svg id=x onload=alert(1)>#x"/></svg>
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;"></table></math>
<svg></p><style><a id="</style><img src=1 onerror=alert(1)>"></svg>
<noscript><p title="</noscript><img src=x onerror=alert(1)>"></noscript>
<template><script>alert(1)</script></template>
<iframe src="https://x.example/"></iframe><iframe srcdoc="<script>alert(1)</script>"></iframe>
<frameset><frame src="javascript:alert(1)"></frameset>
<object data="https://x.example/a.swf"></object><embed src="https://x.example/a.swf"><applet code=a></applet>
<form action="https://x.example/"><input name=a autofocus onfocus=alert(1)><button formaction="javascript:alert(1)">
<input type=image src="https://x.example/a.png"><isindex action="javascript:alert(1)">
<meta http-equiv=refresh content="0;url=https://x.example/"><base href="https://x.example/">
<link rel=stylesheet href="https://x.example/a.css"><link rel=dns-prefetch href="//x.example">
<style>@import "https://x.example/a.css"; p {background: url(//x.example/a.png)}</style>
<p style="background: url(https://x.example/a.png)">text</p>
<p style="cursor: url(https://x.example/a.png), auto">text</p>
<p style="list-style: url('https://x.example/a.png'); width: expression(alert(1)); behavior: url(#x)">text</p>
<p style="position: fixed; inset: 0; z-index: 9">text</p>
<table background="https://x.example/a.png"><td background="//x.example/a.png">text</table>
<video src="https://x.example/a.mp4" poster="//x.example/a.png" onerror=alert(1)><source src="//x.example/a"></video>
<audio src="https://x.example/a.mp3" autoplay></audio><picture><source srcset="//x.example/a.png"></picture>
<details open ontoggle=alert(1)>text</details><marquee onstart=alert(1)>text</marquee>
<body onload=alert(1) background="//x.example/a.png"><html onclick=alert(1)>
<x-y onpointerenter=alert(1) style="animation-name: x" onanimationstart=alert(1)>text</x-y>
<!--><img src=x onerror=alert(1)>--><!-- --!><script>alert(1)</script>
<![CDATA[<script>alert(1)</script>]]><?xml-stylesheet href="https://x.example/a.css"?>
<textarea></textarea><img src=x onerror=alert(1)><title><img src=x onerror=alert(1)></title>
<plaintext><script>alert(1)</script>
'''.strip().splitlines()
TAGS = set("""script link iframe frame object embed applet base meta style svg math form input button template noscript
    plaintext marquee video audio source""".split())
ATTRIBUTES = set('srcset dynsrc lowsrc poster background ping srcdoc data action formaction'.split())
URLS = re.compile('(?i)(javascript|vbscript|blob):|data:text')


def dangers(page):
    "What a browser would run or load of the HTML `page`, which is parsed as HTML 5 prescribes."
    found = []
    for tag in HTMLParser(namespaceHTMLElements=False).parse(page).iter():
        name = str(tag.tag).rpartition('}')[2]
        if name in TAGS:
            found.append(name)
        for key, value in tag.attrib.items():
            value = re.sub(r'[\x00-\x20]', '', value)
            if key in ATTRIBUTES or key.startswith('on'):
                found.append(key)
            if key == 'src' and not value.startswith('data:image/'):
                found.append(value)
            if URLS.match(value) or key == 'style' and re.search(r'\(|position', value):
                found.append(value)
    return found


@pytest.mark.parametrize('text', HOSTILE)
def test_an_output_runs_and_loads_nothing(text):
    assert dangers(sanitize(text)) == []
    assert dangers(sanitize(sanitize(text))) == []


def test_the_check_sees_dangers():
    seen = [text for text in HOSTILE if dangers(f'<body>{text}')]
    assert len(seen) > .9*len(HOSTILE)


@pytest.mark.filterwarnings('ignore:.*not able to be represented')
@pytest.mark.parametrize('kind', ['text/html', 'text/markdown', 'text/latex', 'application/javascript',
                                  'text/javascript', 'image/svg+xml', 'text/vnd.mermaid', 'text/plain',
                                  'application/vnd.jupyter.widget-view+json', 'application/json', 'text/unknown'])
def test_every_kind_of_output(kind):
    texts = HOSTILE if kind in ('text/html', 'text/markdown') else HOSTILE[:3]
    outputs = [new_output('display_data', {kind: {'model_id': t} if 'json' in kind else t}) for t in texts]
    page = to_fragment(new_notebook(cells=[new_code_cell('show()', outputs=outputs), new_code_cell('last')]))
    assert dangers(page) == []
    assert page.count('last') == 1


def test_cells_streams_and_errors():
    outputs = [new_output('stream', name=name, text='\n'.join(HOSTILE)) for name in ('stdout', 'stderr')]
    outputs += [new_output('error', ename=text, evalue=text, traceback=[text]) for text in HOSTILE]
    code = [new_code_cell('\n'.join(HOSTILE), outputs=outputs)]
    others = [new(text) for new in (new_markdown_cell, new_raw_cell) for text in HOSTILE]
    page = to_fragment(new_notebook(cells=code + others))
    assert dangers(page) == []
    assert '&lt;script&gt;alert(1)&lt;/script&gt;' in page      # what a cell printed can be read


def test_names_and_facts(tmp_path):
    name = '<img src=x onerror=alert(1)>'
    nbformat.write(new_notebook(cells=[new_markdown_cell(f'# A {name}')]), tmp_path/f'{name}.ipynb')
    page = write_report([tmp_path/f'{name}.ipynb'], tmp_path/'report.html', name, {name: name}).read_text()
    body = page[page.index('<body>'):]
    assert dangers(body) == []
    assert 'alert(1)' in body


# ── what a report shows

@pytest.mark.parametrize('text', [
    '<table border="1" class="dataframe"><thead><tr style="text-align: right;"><th colspan="2">a</th></tr></thead>'
    '<tbody><tr><td>1</td><td>2</td></tr></tbody></table>'.replace(' border="1"', ''),
    '<div class="highlight"><pre><span></span><span class="n">fit</span><span class="p">(</span></pre></div>',
    '<p>5 &lt; 6 &amp; <em>a</em> <code>b</code> <kbd>c</kbd> <sub>1</sub></p>',
    '<h2 id="a-b">A b</h2>', '<a href="#a-b">b</a>', '<a href="other.ipynb#a">b</a>', '<a href="?a=b:c">b</a>',
    '<a href="https://example.org/a?b=1&amp;c=2">b</a>', '<a href="mailto:a@example.org">b</a>',
    '<img alt="curve" src="data:image/svg+xml;base64,AAAA" title="t" width="3">',
    '<span style="color: red; font-weight: bold;">red</span>', '<details open><summary>a</summary>b</details>',
    '<ol start="3"><li>a</li></ol>', '<blockquote>a</blockquote>'])
def test_ordinary_html_stays_as_it_is(text):
    assert sanitize(text) == text


def test_the_table_of_a_data_frame():
    pandas = pytest.importorskip('pandas')
    frame = pandas.DataFrame({'run': ['a < b', 'c'], 'top-1': [.5, .25]})
    page = sanitize(frame._repr_html_())
    cells = [td.get_text() for td in BeautifulSoup(page, 'html.parser').find_all('td')]
    assert cells == ['a < b', '0.50', 'c', '0.25']
    assert 'vertical-align' not in page      # its style sheet is not shown as text
    styled = sanitize(frame.style.format(precision=3).to_html())
    assert '0.250' in styled
    assert '#T_' not in styled


def test_formulas_and_colours():
    cells = [new_markdown_cell('the loss $a < b$ and\n\n$$\\sum_i x_i$$'),
             new_code_cell('p()', outputs=[new_output('stream', name='stdout', text='\x1b[31mred\x1b[0m 1 < 2\n')])]
    page = to_fragment(new_notebook(cells=cells))
    assert '$a &lt; b$' in page
    assert '\\sum_i x_i' in page
    assert 'ansi-red-fg">red</span> 1 &lt; 2' in page


def test_pictures_from_elsewhere_are_links():
    assert sanitize('<img src="https://x.org/a.png" alt="a rose">') == '<a href="https://x.org/a.png">a rose</a>'
    assert sanitize('<img src="a.png">') == '<a href="a.png">a.png</a>'
    assert sanitize('<img src="javascript:alert(1)" alt="a">') == '<a>a</a>'


def test_deep_and_open_elements():
    assert sanitize('<b>'*3000 + 'text').startswith('<b>')
    assert 'text' in sanitize('<div><p><table><tr>text')
    assert to_fragment(new_notebook(cells=[
        new_code_cell('', outputs=[new_output('display_data', {'text/html': '</div></section></main>x<div id="a">'})]),
        new_code_cell('last')])).count('last') == 1
