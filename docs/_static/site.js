// What the theme leaves out: names for the arrows of its menu, for those who listen to a page; a page's contents in narrow windows.
document.addEventListener('DOMContentLoaded', () => {
  for (const arrow of document.querySelectorAll('nav summary'))
    arrow.setAttribute('aria-label', 'Pages of ' + (arrow.closest('li')?.querySelector('a')?.textContent.trim() || 'this part'));
  const contents = document.querySelector('#pst-page-toc-nav > ul'), title = document.querySelector('.bd-article h1');
  if (contents && title) {  // for windows that have no room for a second sidebar
    const box = document.createElement('details'), summary = document.createElement('summary'), nav = document.createElement('nav');
    box.className = 'on-this-page';
    summary.textContent = 'On this page';
    nav.setAttribute('aria-label', 'On this page');
    nav.append(contents.cloneNode(true));
    box.append(summary, nav);
    title.after(box);
  }
});
