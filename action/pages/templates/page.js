"use strict";
for (const table of document.querySelectorAll("table[data-sorts]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = new Intl.Collator("en", { numeric: true }).compare;
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      const numbers = rows.every(([text]) => text === "" || Number.isFinite(Number(text)));
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === ""); // what has no number stays last
        return (down ? -1 : 1) * (numbers ? a - b : compare(a, b));
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

document.getElementById("class")?.addEventListener("change", (event) => {
  for (const row of document.querySelectorAll("#every-case tbody tr")) {
    row.hidden = event.target.value !== "" && row.dataset.class !== event.target.value;
  }
});

for (const figure of document.querySelectorAll("[data-chart]")) {
  const data = JSON.parse(figure.dataset.chart);
  const [drawing, cursor] = [figure.querySelector("svg"), figure.querySelector(".cursor")];
  const outputs = [...figure.querySelectorAll(".legend output")];
  const [left, right] = data.span;
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * 460;
    const x = 1 + ((Math.min(Math.max(at, left), right) - left) / (right - left)) * (data.last - 1);
    cursor.style.visibility = "visible";
    cursor.setAttribute("x1", Math.min(Math.max(at, left), right));
    cursor.setAttribute("x2", Math.min(Math.max(at, left), right));
    data.lines.forEach((line, i) => {
      let best = 0;
      line.x.forEach((value, j) => { if (Math.abs(value - x) < Math.abs(line.x[best] - x)) best = j; });
      outputs[i].textContent = line.x.length ? `${line.y[best]} at ${line.x[best]}` : "";
    });
  });
  drawing.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    for (const output of outputs) output.textContent = "";
  });
}

function showCases(source) {
  const { cases, classes, colors } = JSON.parse(source.textContent);
  const part = (id) => document.getElementById(id);
  const [choice, slider, about, viewer, pixel] = ["case", "slice", "about", "viewer", "pixel"].map(part);
  const views = ["image", "truth", "prediction"].map(part);
  const rgb = colors.map((color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)));
  let now = null;
  let turn = 0;
  cases.forEach((item) => choice.append(new Option(item.title)));
  classes.slice(1).forEach((name, i) => {
    const entry = document.createElement("li");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colors[i];
    entry.append(swatch, name);
    part("classes").append(entry);
  });

  async function load(uri) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    return image;
  }

  async function open(index) {
    const item = cases[index];
    const mine = ++turn;
    const [image, labels] = await Promise.all([load(item.image), load(item.labels)]);
    if (mine !== turn) return; // another case was chosen meanwhile
    now = { item, image, labels };
    slider.max = item.slices.length - 1;
    slider.value = item.first;
    draw();
  }

  function pixels(picture, i) {
    const [width, height] = now.item.size;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    const columns = now.item.columns;
    pen.drawImage(picture, (i % columns) * width, Math.floor(i / columns) * height, width, height, 0, 0, width, height);
    return pen.getImageData(0, 0, width, height);
  }

  /* Tint of one label (0 truth, 1 prediction) and outlines of `outlined`, the second of them dashed. */
  function paint(target, labels, tint, outlined) {
    const [width, height] = now.item.size;
    const out = target.data;
    const mix = (at, color, share) => {
      for (let c = 0; c < 3; c++) out[at + c] = out[at + c] * (1 - share) + color[c] * share;
    };
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const at = 4 * (y * width + x);
        if (labels[at + tint]) mix(at, rgb[labels[at + tint] - 1], 0.4);
        for (const which of outlined) {
          const value = labels[at + which];
          const edge = value && [[x - 1, y], [x + 1, y], [x, y - 1], [x, y + 1]].some(([u, v]) =>
            u < 0 || v < 0 || u >= width || v >= height || labels[4 * (v * width + u) + which] !== value);
          if (edge && (which === outlined[0] || (x + y) % 4 < 2)) mix(at, which === outlined[0] ? rgb[value - 1] : [255, 255, 255], 1);
        }
      }
    }
  }

  function draw() {
    const { item } = now;
    const i = Number(slider.value);
    const labels = pixels(now.labels, i).data;
    now.shown = labels;
    views.forEach((view, which) => {
      [view.width, view.height] = item.size;
      const data = pixels(now.image, i);
      if (which === 1) paint(data, labels, 0, [0]);
      if (which === 2) paint(data, labels, 1, [1, 0]);
      view.getContext("2d").putImageData(data, 0, 0);
    });
    about.textContent = `slice ${item.slices[i]} of ${item.total}; Dice in it: ${item.dice[i]}`;
    slider.setAttribute("aria-valuetext", `slice ${item.slices[i]}`);
  }

  choice.addEventListener("change", () => open(choice.selectedIndex));
  slider.addEventListener("input", draw);
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!step || !now || event.target === choice || event.target === slider) return;
    slider.value = Number(slider.value) + step;
    draw();
    event.preventDefault();
  });
  for (const view of views) {
    view.addEventListener("pointermove", (event) => {
      if (!now) return;
      const box = view.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * view.width);
      const y = Math.floor(((event.clientY - box.top) / box.height) * view.height);
      const at = 4 * (y * view.width + x);
      if (now.shown[at] === undefined) return;
      pixel.textContent = `truth: ${classes[now.shown[at]]}; prediction: ${classes[now.shown[at + 1]]}`;
    });
  }
  open(0);
}
if (document.getElementById("viewed")) showCases(document.getElementById("viewed"));
