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

export async function predict(file, fields) {
  const form = new FormData();
  form.append("photo", file, file.name || "photo");
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  return call("/predict", { method: "POST", body: form });
}

export function decodeBase64(text) {
  return Uint8Array.from(atob(text), each => each.charCodeAt(0));
}

export function encodeBase64(bytes) {
  let text = "";
  for (const each of bytes) text += String.fromCharCode(each);
  return btoa(text);
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
