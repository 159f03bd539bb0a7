// What the theme leaves out for those who listen to a page: names for the arrows of its menu.
document.addEventListener('DOMContentLoaded', () => {
  for (const arrow of document.querySelectorAll('nav summary'))
    arrow.setAttribute('aria-label', 'Pages of ' + (arrow.closest('li')?.querySelector('a')?.textContent.trim() || 'this part'));
});
