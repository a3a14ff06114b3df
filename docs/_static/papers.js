/* Search, filters and sorting for the table of papers. Without this script the table is a plain list. */
(() => {
  "use strict";
  const [TITLE, AUTHORS, YEAR, VENUE, CATEGORY, TAGS, IMPLEMENTED, CLAIMS] = Array(8).keys();
  const table = document.querySelector("table.papers-table");
  if (!table) return;

  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const body = table.tBodies[0];
  const papers = [...body.rows].map((row) => {
    const cells = [...row.cells].map((cell) => cell.textContent.trim());
    const tags = cells[TAGS].split(", ").filter(Boolean);
    return { row, cells, tags, text: plain(cells.slice(TITLE, IMPLEMENTED).join(" ")) };
  });
  const years = papers.map((paper) => Number(paper.cells[YEAR]));
  const distinct = (values) => [...new Set(values)].sort((a, b) => a.localeCompare(b));

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const option = (value) => element("option", { value }, value || "all");
  const select = (values) => element("select", { class: "form-select" }, ...["", ...values].map(option));
  const year = (name) =>
    element("input", {
      type: "number", class: "form-control", min: Math.min(...years), max: Math.max(...years),
      placeholder: name === "from" ? Math.min(...years) : Math.max(...years),
    });
  const checkbox = () => element("input", { type: "checkbox", class: "form-check-input" });
  const inputs = {
    q: element("input", { type: "search", class: "form-control", placeholder: "title, author, venue, tag" }),
    category: select(distinct(papers.map((paper) => paper.cells[CATEGORY]))),
    tag: select(distinct(papers.flatMap((paper) => paper.tags))),
    from: year("from"),
    to: year("to"),
    implemented: checkbox(),
    claims: checkbox(),
  };
  const labels = {
    q: "Search", category: "Category", tag: "Tag", from: "From year", to: "To year",
    implemented: "implemented here", claims: "with checked claims",
  };
  const form = element("form", { class: "papers-form", role: "search", "aria-label": "Papers" });
  for (const [name, input] of Object.entries(inputs)) {
    input.name = name;
    const text = element("span", {}, labels[name]);
    const parts = input.type === "checkbox" ? [input, text] : [text, input];
    form.append(element("label", { class: `papers-${name}` }, ...parts));
  }
  const reset = element("button", { type: "reset", class: "btn btn-sm btn-outline-secondary" }, "Reset");
  const count = element("p", { class: "papers-count", role: "status", "aria-live": "polite" });
  form.append(reset);
  const frame = table.closest(".pst-scrollable-table-container") ?? table;
  frame.before(form, count);

  let order = ""; // "column" or "-column", as in the address
  const headers = [...table.tHead.rows[0].cells];
  const names = headers.map((header) => header.textContent.trim().toLowerCase());
  const numeric = new Set([YEAR, IMPLEMENTED, CLAIMS]);
  headers.forEach((header, column) => {
    const button = element("button", { type: "button" }, header.textContent.trim());
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      order = order === names[column] ? `-${names[column]}` : names[column];
      show();
    });
  });

  const sort = () => {
    const column = names.indexOf(order.replace("-", ""));
    const sign = order.startsWith("-") ? -1 : 1;
    headers.forEach((header, index) => {
      if (index === column) header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      else header.removeAttribute("aria-sort");
    });
    const compare = (a, b) =>
      numeric.has(column)
        ? Number(a.cells[column]) - Number(b.cells[column])
        : a.cells[column].localeCompare(b.cells[column]);
    const sorted = column < 0 ? papers : papers.toSorted((a, b) => sign * compare(a, b));
    body.append(...sorted.map((paper) => paper.row));
  };

  const filter = () => {
    const words = plain(inputs.q.value).split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, cells, tags, text } of papers) {
      const published = Number(cells[YEAR]);
      const fits =
        words.every((word) => text.includes(word)) &&
        (!inputs.category.value || cells[CATEGORY] === inputs.category.value) &&
        (!inputs.tag.value || tags.includes(inputs.tag.value)) &&
        (!inputs.from.value || published >= Number(inputs.from.value)) &&
        (!inputs.to.value || published <= Number(inputs.to.value)) &&
        (!inputs.implemented.checked || cells[IMPLEMENTED] !== "") &&
        (!inputs.claims.checked || cells[CLAIMS] !== "");
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${papers.length} papers`;
  };

  const remember = () => {
    const query = new URLSearchParams();
    for (const [name, input] of Object.entries(inputs)) {
      const value = input.type === "checkbox" ? (input.checked ? "1" : "") : input.value;
      if (value) query.set(name, value);
    }
    if (order) query.set("sort", order);
    const search = query.toString();
    history.replaceState(null, "", search ? `?${search}` : location.pathname);
  };

  const recall = () => {
    const query = new URLSearchParams(location.search);
    for (const [name, input] of Object.entries(inputs)) {
      if (input.type === "checkbox") input.checked = query.has(name);
      else input.value = query.get(name) ?? "";
    }
    order = query.get("sort") ?? "";
  };

  const show = () => {
    sort();
    filter();
    remember();
  };

  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    order = "";
    setTimeout(show); // after the fields are empty
  });
  recall();
  show();
})();
