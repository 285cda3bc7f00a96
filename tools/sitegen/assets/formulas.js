// MathJax renders what pymdownx.arithmatex marked, and nothing else; its fonts lie beside it.
// Without 'noundefined' an unknown command is an error, which the check of the site finds.
window.MathJax = {
  tex: {inlineMath: [['\\(', '\\)']], displayMath: [['\\[', '\\]']], packages: {'[-]': ['noundefined']}},
  options: {ignoreHtmlClass: '.*|', processHtmlClass: 'arithmatex', enableMenu: false}
}
