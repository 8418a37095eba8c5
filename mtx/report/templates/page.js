"use strict";
const number = (cell) => (cell.dataset.v === undefined ? NaN : Number(cell.dataset.v));

// Sorting: a click sorts, a second one turns the order round, a third goes back to groups. Gaps stand last.
function sortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const numeric = original.some((row) => row.classList.contains("task") && !Number.isNaN(number(row.cells[column])));
      const orders = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
      const order = orders[orders.indexOf(head.getAttribute("aria-sort")) + 1];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const rows = [...original];
      if (order) {
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          if (!numeric) return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
          const [x, y] = [number(a.cells[column]), number(b.cells[column])];
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return sign * (x - y);
        });
      }
      body.append(...rows);
      show(table);
    });
  });
}

// What is filtered away is hidden; the last line is then the mean of the tasks that are left.
function show(table) {
  const box = table.closest(".filtered");
  const words = (box?.querySelector("input[type=search]")?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const sorted = table.querySelector("[aria-sort]") !== null;
  table.classList.toggle("grouped", !sorted && table.querySelector("tr.category") !== null);
  const left = [];
  for (const row of table.tBodies[0].rows) {
    const task = row.classList.contains("task");
    const fits = words.every((word) => (row.dataset.words ?? "").includes(word));
    row.hidden = task ? !fits : sorted || words.length > 0;
    if (task && fits) left.push(row);
  }
  const foot = table.tFoot?.rows[0];
  if (!foot) return;
  [...foot.cells].forEach((cell, column) => {
    cell.dataset.whole ??= cell.innerHTML;
    if (!words.length) { cell.innerHTML = cell.dataset.whole; return; }
    const values = left.map((row) => number(row.cells[column])).filter((value) => !Number.isNaN(value));
    if (column === 0) cell.textContent = `mean of ${left.length} shown`;
    else if (cell.classList.contains("mean")) cell.textContent = values.length ? (values.reduce((a, b) => a + b) / values.length).toFixed(1) : "–";
    else cell.textContent = cell.classList.contains("n") ? String(left.length) : "";
  });
}

// Some at a time: pages of long texts are heavy, and the worst stand first.
const AT_A_TIME = 20;
function examples(box) {
  let most = AT_A_TIME;
  const more = box.querySelector(".more");
  const search = box.querySelector("input[type=search]");
  const [wrong, differs] = ["wrong", "differs"].map((name) => box.querySelector(`input[name=${name}]`));
  const count = box.querySelector("output");
  const all = [...box.querySelectorAll("article")];
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const article of all) {
      const text = (article.dataset.all ??= article.textContent.toLowerCase());
      const fits = words.every((word) => text.includes(word)) &&
        !(wrong.checked && article.dataset.wrong === undefined) && !(differs?.checked && article.dataset.differs === undefined);
      left += fits;
      article.hidden = !fits || left > most;
    }
    count.textContent = `${Math.min(left, most)} of ${left} shown`;
    more.hidden = left <= most;
    atTheEnd(box);
  };
  const anew = () => { most = AT_A_TIME; apply(); };
  for (const input of box.querySelectorAll("input")) input.addEventListener("input", anew);
  more.addEventListener("click", () => { most += AT_A_TIME; apply(); });
  box.addEventListener("toggle", () => atTheEnd(box));
  apply();
}

// Of a long input the end is in sight: instructions stand first, the question last.
function atTheEnd(box) {
  for (const text of box.querySelectorAll("article:not([hidden]) .input:not([data-seen])")) {
    if (!text.clientHeight) continue;
    text.scrollTop = text.scrollHeight;
    text.dataset.seen = "";
  }
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".filtered").forEach((box) => {
  box.querySelector("input[type=search]").addEventListener("input", () => box.querySelectorAll("table.sortable").forEach(show));
});
document.querySelectorAll(".examples").forEach(examples);
// Without this page's script there is nothing to sort or filter with.
document.querySelectorAll(".tools").forEach((tools) => { tools.hidden = false; });
// On paper nothing can be unfolded; what is long stays as it is.
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not([open], .long)")) { each.open = true; each.dataset.printed = ""; }
});
addEventListener("afterprint", () => {
  for (const each of document.querySelectorAll("details[data-printed]")) { each.open = false; delete each.dataset.printed; }
});
