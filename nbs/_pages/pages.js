// Tabs of one group change together; a link into a folded or hidden place opens it. Pages work without this file.
document.querySelectorAll('.tabs input').forEach(function (input) {
  input.addEventListener('change', function () {
    var name = input.parentNode.dataset.tab, group = input.closest('.tabs').dataset.group;
    if (!group) return;
    document.querySelectorAll('.tabs[data-group="' + group + '"] .tab').forEach(function (tab) {
      if (tab.dataset.tab === name) tab.querySelector('input').checked = true;
    });
  });
});
function reveal() {
  var target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (var e = target; e; e = e.parentElement) {
    if (e.tagName === 'DETAILS') e.open = true;
    if (e.classList.contains('pane')) {
      var input = e.previousElementSibling.querySelector('input');
      input.checked = true;
      input.dispatchEvent(new Event('change'));
    }
  }
  target.scrollIntoView();
}
addEventListener('hashchange', reveal);
reveal();

// Search over the sections of all pages: every word must occur; titles count more than text.
(function () {
  var box = document.querySelector('.search'), input = box && box.querySelector('input'), list = box && box.querySelector('.found');
  if (!box || typeof SECTIONS === 'undefined') return;
  box.hidden = false;
  function plain(text) { return text.toLowerCase().normalize('NFD').replace(/[\u0300-\u036f]/g, '').replace(/ł/g, 'l'); }
  var sections = SECTIONS.map(function (s) { return { to: s[0], page: s[1], title: s[2], text: s[3], head: plain(s[1] + ' ' + s[2]), body: plain(s[3]) }; });
  function score(section, words) {
    var total = 0;
    for (var i = 0; i < words.length; i++) {
      var here = (section.head.includes(words[i]) ? 5 : 0) + (section.body.includes(words[i]) ? 1 : 0);
      if (!here) return 0;
      total += here;
    }
    return total;
  }
  input.addEventListener('input', function () {
    var words = plain(input.value).split(/\s+/).filter(Boolean);
    list.textContent = '';
    if (!words.length) return;
    var hits = sections.map(function (s) { return [score(s, words), s]; }).filter(function (h) { return h[0]; });
    hits.sort(function (a, b) { return b[0] - a[0]; });
    hits.slice(0, 12).forEach(function (hit) {
      var a = document.createElement('a'), small = document.createElement('small'), at = hit[1].body.indexOf(words[0]);
      a.href = hit[1].to;
      a.textContent = hit[1].page + (hit[1].title ? ' › ' + hit[1].title : '');
      small.textContent = hit[1].text.slice(Math.max(0, at - 40), Math.max(0, at - 40) + 110);
      a.appendChild(small);
      list.appendChild(a);
    });
    if (!hits.length) list.textContent = 'Nothing found.';
  });
  input.addEventListener('keydown', function (e) { if (e.key === 'Enter' && list.firstElementChild) list.firstElementChild.click(); });
  addEventListener('keydown', function (e) {
    if (e.key === '/' && document.activeElement !== input) { e.preventDefault(); input.focus(); }
    if (e.key === 'Escape') { input.value = ''; list.textContent = ''; input.blur(); }
  });
  addEventListener('click', function (e) { if (!box.contains(e.target)) list.textContent = ''; });
})();
