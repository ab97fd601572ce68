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
