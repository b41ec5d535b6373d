// The form of a model: a field for each column of a row, and the answer. Texts are set as texts, never as HTML.
"use strict";

const find = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function makeNote(textContent) {
  return make("p", { className: "muted", textContent });
}

function makeField(column, rows) {
  if (column.kind === "image") return make("input", { type: "file", accept: "image/*", required: true });
  if (column.kind === "number") return make("input", { type: "number", step: "any" });
  if (column.categories) {
    const options = column.categories.map((name) => make("option", { value: name }));
    const list = make("datalist", { id: `values of ${column.name}` }, ...options);
    document.body.append(list);
    const input = make("input", { type: "text", autocomplete: "off" });
    input.setAttribute("list", list.id);
    return input;
  }
  return make("textarea", { required: true, spellcheck: false, rows: rows === "words" ? 3 : 5 });
}

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function valueOf(input, kind) {
  if (kind === "image") return readFile(input.files[0]);
  if (kind === "words") return input.value.trim().split(/\s+/);
  if (kind === "number") return input.value === "" ? null : Number(input.value);
  return kind !== "text" && input.value === "" ? null : input.value;
}

function showProbabilities(probabilities) {
  const list = make("dl");
  // An object lists names that are whole numbers first, so the order has to be made again.
  for (const [name, value] of Object.entries(probabilities).sort((a, b) => b[1] - a[1])) {
    const bar = make("meter", { min: 0, max: 1, value });
    bar.setAttribute("aria-label", `probability of ${name}`);
    list.append(make("dt", { textContent: name }), make("dd", {}, bar));
    list.append(make("dd", { className: "number", textContent: value.toFixed(3) }));
  }
  return make("div", {}, makeNote("Probabilities:"), list);
}

function titleOf({ probability }) {
  // Folders of earlier versions do not say it.
  return probability === undefined ? "" : `probability ${probability.toFixed(3)}`;
}

function showTags(answer) {
  const line = make("p");
  const mark = (text, name, title = "") => make("mark", { title }, text, make("small", { textContent: name }));
  const entities = new Map(answer.entities?.map((entity) => [entity.start, entity]));
  for (let place = 0; place < answer.words.length; ) {
    if (place) line.append(" ");
    const entity = entities.get(place);
    const end = entity ? entity.end : place + 1;
    const text = answer.words.slice(place, end).join(" ");
    const name = entity ? entity.type : !answer.entities && answer.tags[place];
    line.append(name && name !== "O" ? mark(text, name, entity && titleOf(entity)) : text);
    place = end;
  }
  const cut = " (The last words are beyond the model's limit.)";
  if (answer.tags.includes(null)) line.append(make("small", { textContent: cut }));
  return line;
}

function showSpans(entities) {
  const marks = entities.map((entity) =>
    make("mark", { title: titleOf(entity) }, entity.text, make("small", { textContent: entity.type })),
  );
  return make("p", {}, ...(marks.length ? marks.flatMap((mark) => [mark, " "]) : ["no entity"]));
}

function showEmbedding(vector) {
  const length = Math.hypot(...vector).toPrecision(4);
  const first = vector.slice(0, 8).map((value) => value.toFixed(4)).join("  ");
  return [
    makeNote(`${vector.length} numbers, length of the vector ${length}. The first ones:`),
    make("pre", { className: "wrap", textContent: first }),
  ];
}

function showFilled(filled) {
  const rows = filled.map((each, place) => {
    const title = makeNote(`Mask ${place + 1}${each ? "" : ": beyond the model's limit"}`);
    return each ? [title, showProbabilities(each.probabilities ?? { [each.token]: each.probability })] : [title];
  });
  return rows.flat();
}

function show(answer) {
  if (answer.error) return [make("p", { className: "error", textContent: answer.error })];
  const title = [answer.label, answer.labels?.join(", ") || (answer.labels && "no label"), answer.value, answer.text];
  const shown = [title.find((each) => each !== undefined)].flat();
  const value = shown.map((each) => (typeof each === "number" ? Number(each.toPrecision(6)) : each)).join(", ");
  const parts = value === "" ? [] : [make("p", { className: value.length > 80 ? "" : "value", textContent: value })];
  if (answer.tags) parts.push(showTags(answer));
  else if (answer.entities) parts.push(showSpans(answer.entities));
  const probabilities = answer.probabilities ?? (answer.label && { [answer.label]: answer.probability });
  if (probabilities) parts.push(showProbabilities(probabilities));
  if (answer.next) parts.push(showProbabilities(Object.fromEntries(answer.next.map((e) => [e.token, e.probability]))));
  if (answer.perplexity) parts.push(makeNote(`Perplexity of the text: ${answer.perplexity}`));
  if (answer.filled) parts.push(...showFilled(answer.filled));
  if (answer.embedding) parts.push(...showEmbedding(answer.embedding));
  const whole = make("pre", { className: "wrap", textContent: JSON.stringify(answer, null, 1) });
  parts.push(make("details", { open: !parts.length }, make("summary", { textContent: "as JSON" }), whole));
  return parts;
}

function showPreview(input) {
  const preview = make("img", { alt: "the chosen image", hidden: true });
  input.after(preview);
  input.addEventListener("change", async () => {
    preview.hidden = !input.files.length;
    if (input.files.length) preview.src = await readFile(input.files[0]);
  });
}

async function predict(row, top) {
  const body = JSON.stringify({ rows: [row], top });
  const response = await fetch("predict", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const result = await response.json();
  return result.answers ? result.answers[0] : { error: result.error };
}

async function start() {
  const model = await (await fetch("model")).json();
  document.title = find("form").ariaLabel = model.name;
  document.querySelector("h1").textContent = model.name;
  const rows = { spans: "texts", tables: "rows of a table" }[model.rows] ?? model.rows; // spans are found in texts
  const answers = { masked: "words for [MASK]", next_tokens: "next tokens", values: "numbers" }[model.answers];
  find("about").textContent = `${model.file}: ${rows} in, ${answers ?? model.answers} out.`;
  const example = model.example?.rows[0];
  const inputs = model.columns.map((column) => {
    const input = makeField(column, model.rows);
    const value = example?.[column.name];
    if (value !== undefined && value !== null) input.value = Array.isArray(value) ? value.join(" ") : value;
    find("fields").append(make("label", {}, column.name, input));
    if (column.kind === "image") showPreview(input);
    return input;
  });
  find("fields").className = model.rows === "tables" ? "fields" : "";
  if (!["classes", "labels", "masked", "next_tokens"].includes(model.answers)) find("top").parentElement.hidden = true;
  if (model.answers === "next_tokens") find("top").min = find("top").value = 5; // it always answers at least five
  const shown = example ?? { [model.columns[0].name]: "<the file in base64>" };
  const quoted = JSON.stringify({ rows: [shown] }).replaceAll("'", "'\\''");
  find("curl").textContent = `curl ${location.origin}/predict -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;

  find("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.target.querySelector("button");
    button.disabled = true;
    try {
      const values = await Promise.all(inputs.map((input, place) => valueOf(input, model.columns[place].kind)));
      const row = Object.fromEntries(model.columns.map((column, place) => [column.name, values[place]]));
      find("answer").replaceChildren(...show(await predict(row, Number(find("top").value) || 1)));
    } catch (error) {
      find("answer").replaceChildren(make("p", { className: "error", textContent: `No answer: ${error.message}` }));
    } finally {
      button.disabled = false;
    }
  });
}

start().catch((error) => (find("about").textContent = `The model does not answer: ${error.message}`));
