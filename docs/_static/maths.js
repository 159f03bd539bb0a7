// Renders the formulas of a page with KaTeX, which lies beside this file.
for (const node of document.querySelectorAll('.math'))
  katex.render(node.textContent, node, {displayMode: node.tagName === 'DIV', throwOnError: false});
