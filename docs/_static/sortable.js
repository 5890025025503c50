// A click on the head of a column sorts the table by it; a second click reverses the order. Numbers are compared as
// numbers, and rows without a value stay last.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".sortable table")) {
    const heads = table.querySelectorAll("thead th");
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      head.setAttribute("role", "button");
      const sort = () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
        const text = (row) => row.cells[column].textContent.trim();
        const compare = (a, b) => {
          if (!a || !b) return !a - !b;
          const difference = Number(a.replaceAll(",", "")) - Number(b.replaceAll(",", ""));
          return sign * (Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference);
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => compare(text(a), text(b))));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
  }
});
