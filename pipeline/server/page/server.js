// Calls of the server's API.

let token = "";

export class ServerError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// Kept in this page's memory only.
export function useToken(text) {
  token = text;
}

export async function fetchModels() {
  return call("/models", {});
}

// All detections of a photo: the page applies the score threshold itself.
export async function predict(file, model) {
  const form = new FormData();
  form.append("photo", file, file.name || "photo");
  form.append("model", model);
  form.append("score_threshold", "0");
  return call("/predict", { method: "POST", body: form });
}

async function call(path, options) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new ServerError(0, "the server does not answer");
  }
  const text = await response.text();
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    content = { error: text.slice(0, 200) };
  }
  if (!response.ok) throw new ServerError(response.status, content.error || `status ${response.status}`);
  return content;
}
