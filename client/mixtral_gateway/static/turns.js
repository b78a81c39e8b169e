// What the page shows of one question and its answer.

import { blockNode, parse } from "./markdown.js";

export class Turn {
  /** onRegenerate is called when the reader asks for the answer again. */
  constructor(question, onRegenerate) {
    this.question = question;
    this.answer = "";
    this.node = node("article", "turn");
    const asked = node("div", "question", [node("h3", "unseen", ["You"]), node("p", "", [question])]);
    this.text = node("div", "answer");
    this.waiting = node("div", "waiting", [node("i"), node("i"), node("i")]);
    this.error = node("p", "error");
    this.meta = node("p", "meta");
    this.meta.setAttribute("aria-live", "off"); // it changes with every token
    this.again = node("button", "quiet", ["Regenerate"]);
    this.again.type = "button";
    this.again.addEventListener("click", onRegenerate);
    this.foot = node("div", "foot", [this.meta, this.again]);
    this.node.append(asked, node("h3", "unseen", ["Model"]), this.text, this.waiting, this.error, this.foot);
    this.blocks = [];
    this.begin();
  }

  /** Empties the answer; until `end` screen readers wait instead of reading every piece. */
  begin() {
    this.answer = "";
    this.failed(null);
    this.meta.textContent = "";
    this.again.hidden = true;
    this.waiting.hidden = false;
    this.node.setAttribute("aria-busy", "true");
    this.show();
  }

  /** Shows the answer so far. Blocks that did not change stay, so that a selection in them does too. */
  show() {
    const sources = parse(this.answer).map((block) => [JSON.stringify(block), block]);
    const kept = sources.findIndex(([source], i) => source !== this.blocks[i]);
    const from = kept < 0 ? sources.length : kept;
    while (this.text.childNodes.length > from) this.text.lastChild.remove();
    this.text.append(...sources.slice(from).map(([, block]) => blockNode(block)));
    this.blocks = sources.map(([source]) => source);
    if (this.answer) this.waiting.hidden = true;
  }

  /** A note in place of, or after, the answer; null takes it away. */
  failed(text, isError = true) {
    this.error.textContent = text ?? "";
    this.error.hidden = !text;
    this.error.classList.toggle("mild", !isError);
  }

  end(isLast) {
    this.show();
    this.waiting.hidden = true;
    this.again.hidden = !isLast;
    this.again.textContent = this.answer ? "Regenerate" : "Try again";
    this.node.setAttribute("aria-busy", "false");
  }

  /** What the model is told of it: nothing, if there was no answer, since the roles must alternate. */
  get messages() {
    if (!this.answer) return [];
    return [{ role: "user", content: this.question }, { role: "assistant", content: this.answer }];
  }
}

function node(tag, className = "", children = []) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}
