"use strict";
// Tables sort by a button in each column head, and show only the rows that contain a text. Without this script the page
// shows the same tables in their first order.
const FEWEST_TO_FILTER = 5;
const compareTexts = new Intl.Collator("en", { numeric: true }).compare;

function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.textContent.trim();
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return compareTexts(String(one), String(other));
}

function isEmpty(value) {
  return value === "" || value === "–" || Number.isNaN(value);
}

function sort(table, head, column) {
  const numeric = head.classList.contains("number");
  const before = head.getAttribute("aria-sort");
  const first = numeric ? "descending" : "ascending";
  const second = numeric ? "ascending" : "descending";
  const order = before === first ? second : first;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  for (const body of table.tBodies) {  // controls have their own body: they stay last
    const rows = Array.from(body.rows, (row) => [valueOf(row, column), row]);
    rows.sort(([one], [other]) => isEmpty(one) - isEmpty(other) || sign * compare(one, other));
    body.append(...rows.map(([, row]) => row));
  }
}

function filter(table, text, output) {
  const wanted = text.trim().toLocaleLowerCase();
  const rows = Array.from(table.tBodies).flatMap((body) => Array.from(body.rows));
  for (const row of rows) row.hidden = !row.textContent.toLocaleLowerCase().includes(wanted);
  const shown = rows.filter((row) => !row.hidden).length;
  output.textContent = wanted ? `${shown} of ${rows.length} rows` : "";
}

for (const box of document.querySelectorAll(".table")) {
  const table = box.querySelector("table");
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head, column));
    head.append(button);
  });
  if (Number(box.dataset.rows) >= FEWEST_TO_FILTER) {
    const input = box.querySelector("input");
    input.addEventListener("input", () => filter(table, input.value, box.querySelector("output")));
    box.querySelector(".tools").hidden = false;
  }
}
