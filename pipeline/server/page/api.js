// The page of the API: every path of /openapi.json with its fields and answers.

const make = (tag, text = "", ...children) => {
  const element = document.createElement(tag);
  element.append(text, ...children);
  return element;
};

function describeField([name, field], required) {
  const kind = field.enum ? field.enum.join(", ") : field.format || field.type || "";
  const limits = [["minimum", "at least"], ["maximum", "at most"]]
    .filter(([key]) => key in field).map(([key, text]) => `${text} ${field[key]}`);
  const facts = [kind, ...limits, required.includes(name) ? "required" : `default ${JSON.stringify(field.default)}`];
  return make("tr", "", make("td", "", make("code", name)), make("td", facts.join(", ")), make("td", field.description || ""));
}

function describeBody(kind, { schema }) {
  const table = make("table");
  table.append(...Object.entries(schema.properties).map(each => describeField(each, schema.required || [])));
  return make("div", "", make("h3", `Body: ${kind}`), table);
}

function describeOperation(path, method, operation) {
  const section = make("section", "", make("h2", `${method.toUpperCase()} ${path}`), make("p", operation.summary || ""));
  for (const [kind, body] of Object.entries(operation.requestBody?.content || {})) section.append(describeBody(kind, body));
  const answers = make("table");
  answers.append(...Object.entries(operation.responses).map(([status, { description }]) =>
    make("tr", "", make("td", status), make("td", description))));
  section.append(make("h3", "Answers"), answers);
  return section;
}

const { paths } = await (await fetch("/openapi.json")).json();
document.getElementById("example").textContent = `curl ${paths["/predict"].post["x-curl"]} ${location.origin}/predict`;
for (const [path, methods] of Object.entries(paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    document.getElementById("operations").append(describeOperation(path, method, operation));
  }
}
