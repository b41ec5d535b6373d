// The form of a model: a field for each column of a row, and the answer. Texts are set as texts, never as HTML.
"use strict";

const find = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
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
  for (const [name, value] of Object.entries(probabilities)) {
    const bar = make("meter", { min: 0, max: 1, value });
    bar.setAttribute("aria-label", `probability of ${name}`);
    list.append(make("dt", { textContent: name }), make("dd", {}, bar));
    list.append(make("dd", { className: "number", textContent: value.toFixed(3) }));
  }
  return list;
}

function showTags(answer) {
  const line = make("p");
  answer.words.forEach((word, place) => {
    const tag = answer.tags[place];
    if (place) line.append(" ");
    line.append(tag && tag !== "O" ? make("mark", {}, word, make("small", { textContent: tag })) : word);
  });
  return line;
}

function show(answer) {
  if (answer.error) return [make("p", { className: "error", textContent: answer.error })];
  const title = [answer.label, answer.labels?.join(", ") || (answer.labels && "no label"), answer.value, answer.text];
  const value = title.find((each) => each !== undefined);
  const parts = value === undefined ? [] : [make("p", { className: "value", textContent: value })];
  if (answer.tags) parts.push(showTags(answer));
  const probabilities = answer.probabilities ?? (answer.label && { [answer.label]: answer.probability });
  if (probabilities) parts.push(showProbabilities(probabilities));
  if (answer.next) parts.push(showProbabilities(Object.fromEntries(answer.next.map((e) => [e.token, e.probability]))));
  const whole = make("pre", { className: "wrap", textContent: JSON.stringify(answer, null, 1) });
  parts.push(make("details", { open: !parts.length }, make("summary", { textContent: "as JSON" }), whole));
  return parts;
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
  find("about").textContent = `${model.file}: ${model.rows} in, ${model.answers.replace("_", " ")} out.`;
  const example = model.example?.rows[0];
  const inputs = model.columns.map((column) => {
    const input = makeField(column, model.rows);
    const value = example?.[column.name];
    if (value !== undefined && value !== null) input.value = Array.isArray(value) ? value.join(" ") : value;
    find("fields").append(make("label", {}, column.name, input));
    return input;
  });
  find("fields").className = model.rows === "tables" ? "fields" : "";
  if (!["classes", "labels", "masked", "next_tokens"].includes(model.answers)) find("top").parentElement.hidden = true;
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
      if (model.rows === "images") find("answer").prepend(make("img", { src: values[0], alt: "the image" }));
    } catch (error) {
      find("answer").replaceChildren(make("p", { className: "error", textContent: `No answer: ${error.message}` }));
    } finally {
      button.disabled = false;
    }
  });
}

start().catch((error) => (find("about").textContent = `The model does not answer: ${error.message}`));
