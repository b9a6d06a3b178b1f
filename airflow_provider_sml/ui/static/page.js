// Follows Airflow's light or dark theme, with the report that a page frames, and opens links into Airflow in Airflow's
// own page.
// Airflow shows these pages in a sandboxed frame of its own origin: the frame may look at Airflow's page, but must not
// send it elsewhere itself, so the link is followed from there.
"use strict";
(() => {
  const own = document.documentElement;

  const outside = () => {
    try {
      return window.parent === window ? null : window.parent.document;
    } catch {
      return null; // shown by a page of another origin
    }
  };

  const stored = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  };

  const airflow = outside();

  const follow = () => {
    const classes = airflow ? airflow.documentElement.classList : null;
    let theme = classes && (classes.contains("dark") ? "dark" : classes.contains("light") ? "light" : null);
    theme = theme || stored();
    if (theme !== "dark" && theme !== "light") {
      theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    }
    own.dataset.theme = theme;
    for (const report of document.querySelectorAll("iframe.report")) {
      report.src = `${report.src.split("#")[0]}#${theme}`; // another fragment loads nothing anew
    }
  };

  follow();
  document.addEventListener("DOMContentLoaded", follow);
  if (airflow) {
    new MutationObserver(follow).observe(airflow.documentElement, { attributeFilter: ["class"] });
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-airflow]");
    if (!link || !airflow || event.button !== 0) {
      return;
    }
    event.preventDefault();
    const twin = airflow.createElement("a");
    twin.href = link.href;
    if (link.dataset.airflow === "new" || event.ctrlKey || event.metaKey || event.shiftKey) {
      twin.target = "_blank";
      twin.rel = "noreferrer noopener";
    }
    airflow.body.append(twin);
    twin.click();
    twin.remove();
  });
})();
