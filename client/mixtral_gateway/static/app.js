// The playground: a conversation with the served model. It lives in this page's memory and nowhere else.

import { ApiError, checkHealth, explain, modelName, streamChat } from "./api.js";
import { closeCovering, samplingFields, setUp, systemMessages } from "./settings.js";
import { Speed } from "./speed.js";
import { Turn } from "./turns.js";

const KEY = "api-key"; // in sessionStorage: gone with the tab
const BUSY_RETRIES = 3; // of a 429, each after the time the server asks for
const LONGEST_WAIT_S = 30;
const STATES = { 401: "API key needed", 503: "not ready" };
const FINISHES = { length: "Cut at the maximum of tokens.", content_filter: "Ended by a filter." };

const byId = (id) => document.getElementById(id);
const prompt = byId("prompt");
let turns = [];
let model = null;
let running = null; // the AbortController of the request in flight

async function connect() {
  try {
    model = await withKey((key) => modelName(key));
    byId("model").textContent = model;
    document.title = `${model} · playground`;
    await checkHealth();
    byId("health").className = "dot good";
  } catch (error) {
    const status = error instanceof ApiError ? error.status : 0;
    byId("model").textContent = STATES[status] ?? "not connected";
    byId("health").className = "dot bad";
    say(explain(error));
  }
}

/** Calls with the key of this session; asks for one as often as the server refuses it and the reader gives another. */
async function withKey(call) {
  while (true) {
    const key = sessionStorage.getItem(KEY);
    try {
      return await call(key);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401 || !(await askForKey(key !== null))) throw error;
    }
  }
}

/** Whether the reader gave a key; it is then in the session storage. */
function askForKey(refused) {
  const dialog = byId("key-dialog");
  byId("key-reason").textContent = refused
    ? "The server did not accept that key. Another one?"
    : "This server answers only with a key.";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue; // empty after Cancel and Escape
      if (given) sessionStorage.setItem(KEY, given);
      dialog.returnValue = "";
      byId("key").value = "";
      byId("forget-key").hidden = sessionStorage.getItem(KEY) === null;
      prompt.focus();
      resolve(given !== "");
    }, { once: true });
  });
}

function ask(question) {
  const turn = new Turn(question, () => answer(turn));
  turns.at(-1)?.end(false);
  turns.push(turn);
  byId("conversation").append(turn.node);
  return answer(turn);
}

/** Generates the answer of the last turn, again if it has one. */
async function answer(turn) {
  const fields = running ? null : samplingFields();
  if (!fields) return;
  const messages = [
    ...systemMessages(),
    ...turns.filter((other) => other !== turn).flatMap((other) => other.messages),
    { role: "user", content: turn.question },
  ];
  setRunning(new AbortController());
  const { signal } = running;
  turn.begin();
  scrollDown(true);
  say("Generating");
  try {
    model ??= await withKey((key) => modelName(key, signal));
    await patiently(turn, signal, () => withKey((key) => stream(turn, { model, messages, ...fields }, key, signal)));
    say("Answer complete");
  } catch (error) {
    if (signal.aborted) turn.failed("Stopped.", false);
    else turn.failed(explain(error));
    say(turn.error.textContent);
  }
  turn.end(true);
  setRunning(null);
  scrollDown();
  if (byId("health").className !== "dot good") connect();
}

/** Waits and calls again while the server says that it is busy. */
async function patiently(turn, signal, call) {
  for (let retry = 0; ; retry += 1) {
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 429 || retry === BUSY_RETRIES) throw error;
      for (let left = Math.min(Math.ceil(error.retryAfter ?? 2 ** retry), LONGEST_WAIT_S); left > 0; left -= 1) {
        turn.failed(`${explain(error)} Trying again in ${left} s.`, false);
        await sleep(1000, signal);
      }
      turn.failed(null);
    }
  }
}

async function stream(turn, body, key, signal) {
  const speed = new Speed(performance.now());
  let frame = 0;
  const show = () => {
    frame = 0;
    turn.show();
    turn.meta.textContent = speed.line();
    scrollDown();
  };
  try {
    for await (const chunk of streamChat(body, key, signal)) {
      const [choice] = chunk.choices ?? [];
      if (choice?.delta?.content) {
        turn.answer += choice.delta.content;
        speed.text(performance.now());
      }
      if (FINISHES[choice?.finish_reason]) turn.failed(FINISHES[choice.finish_reason], false);
      if (chunk.usage) speed.usage = chunk.usage;
      frame ||= requestAnimationFrame(show); // at most one drawing a frame, however fast the tokens
    }
    if (!turn.answer) turn.failed("The model ended its answer without a word.", false);
  } finally {
    cancelAnimationFrame(frame);
    show();
  }
}

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

function setRunning(controller) {
  running = controller;
  const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
  byId("stop").hidden = !running;
  byId("send").hidden = Boolean(running);
  byId("clear").disabled = turns.length === 0;
  byId("welcome").hidden = turns.length > 0;
  if (hadFocus) (running ? byId("stop") : prompt).focus();
}

/** Follows the answer, unless the reader has scrolled up. */
let following = true;
function scrollDown(always = false) {
  following ||= always;
  const scroller = byId("scroller");
  if (following) scroller.scrollTop = scroller.scrollHeight;
}

function say(text) {
  byId("status").textContent = text;
}

function clear() {
  running?.abort();
  turns = [];
  byId("conversation").replaceChildren();
  setRunning(running);
  say("New chat");
  prompt.focus();
}

function send() {
  const question = prompt.value.trim();
  if (!question || running || !byId("sampling").checkValidity()) {
    if (question && !running) samplingFields();
    return;
  }
  prompt.value = "";
  ask(question);
}

function stop() {
  running?.abort();
}

prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
byId("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("stop").addEventListener("click", stop);
byId("clear").addEventListener("click", clear);
byId("examples").addEventListener("click", (event) => {
  if (event.target.tagName === "BUTTON" && !running) ask(event.target.textContent);
});
byId("scroller").addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = byId("scroller");
  following = scrollHeight - scrollTop - clientHeight < 60;
});
new ResizeObserver(() => scrollDown()).observe(byId("scroller"));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("key-dialog").open && !closeCovering()) stop();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("key-dialog").close(byId("key").value);
});
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
byId("forget-key").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  byId("forget-key").hidden = true;
  say("The key is forgotten");
});

setUp();
byId("forget-key").hidden = sessionStorage.getItem(KEY) === null;
connect();
