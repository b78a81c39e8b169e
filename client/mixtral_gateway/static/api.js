// The gateway's API: requests, server-sent events, and errors in plain words.

/** What went wrong, as the server or the network said it. status 0: no answer at all. */
export class ApiError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

/** The name of the served model. */
export async function modelName(key, signal) {
  const response = await request("v1/models", { headers: headers(key), signal });
  return (await response.json()).data[0].id;
}

/** Throws, as the server says it, when no model is ready behind it. */
export async function checkHealth() {
  try {
    await request("health", {});
  } catch (error) {
    throw error.status === 503 ? new ApiError(503, "The model server cannot be reached or is not ready") : error;
  }
}

/** Yields the chunks of a streamed chat completion; leaving the loop or aborting the signal closes the connection. */
export async function* streamChat(body, key, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw errorFromObject(500, chunk.error);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof TypeError ? new ApiError(0, "") : error;
  }
  throw new ApiError(0, "The connection ended before the answer was complete.");
}

/** The data of each server-sent event in a stream of bytes, however the stream is cut. */
export async function* eventData(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    while (true) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection may be gone already
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, "");
  }
  if (response.ok) return response;
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  throw errorFromObject(response.status, await errorObject(response), Number.isFinite(seconds) ? seconds : null);
}

async function errorObject(response) {
  try {
    return (await response.json()).error ?? {};
  } catch {
    return {}; // a proxy's page, or nothing
  }
}

function errorFromObject(status, { message = "" }, retryAfter = null) {
  return new ApiError(status, String(message), retryAfter);
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** One or two sentences for the reader of the page. */
export function explain(error) {
  if (!(error instanceof ApiError)) return `The page met an error of its own: ${error.message}`;
  const detail = error.message && ` ${sentence(error.message)}`;
  switch (error.status) {
    case 0: return error.message || "The server cannot be reached. It may have stopped, or the network is gone.";
    case 400:
    case 422: return `The server refused the request.${detail}`;
    case 401:
    case 403: return `The server did not accept the API key.${detail}`;
    case 404: return `The server does not know that model or address.${detail}`;
    case 408:
    case 504: return `The answer took too long.${detail}`;
    case 413: return "The conversation is too long for the server. A new chat starts fresh.";
    case 429: return "The server is busy with other requests.";
    case 502:
    case 503: return `The server is not ready.${detail || " It may be starting or stopping."}`;
    default: return `The server failed.${detail}`;
  }
}

/** Without the code word that begins the server's error texts, and with an end. */
function sentence(text) {
  const plain = text.trim().replace(/^[A-Z_]+: /, "");
  const first = /^\w*_/.test(plain) ? plain.charAt(0) : plain.charAt(0).toUpperCase(); // a field keeps its name
  return first + plain.slice(1) + (/[.!?]$/.test(plain) ? "" : ".");
}
