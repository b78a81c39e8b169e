// Times of one answer as this page sees them, with the definitions of `mixtral bench`: time to first token from sending
// to the first text, tokens per second over the tokens after the first.

export class Speed {
  /** now: milliseconds, from a clock that never goes back. */
  constructor(now) {
    this.sent = now;
    this.first = null;
    this.last = null;
    this.pieces = 0;
    this.usage = null;
  }

  text(now) {
    this.first ??= now;
    this.last = now;
    this.pieces += 1;
  }

  /** One line. A piece of text is nearly always one token; the server's own count replaces the estimate at the end. */
  line() {
    if (this.first === null) return this.usage ? tokens(this.usage) : "";
    const output = this.usage?.completion_tokens ?? this.pieces;
    const about = this.usage ? "" : "about ";
    const parts = [`${seconds(this.first - this.sent)} to first token`];
    if (output > 1 && this.last > this.first) {
      parts.push(`${about}${rate(((output - 1) * 1000) / (this.last - this.first))} tokens/s`);
    }
    parts.push(this.usage ? tokens(this.usage) : `about ${output} ${output === 1 ? "token" : "tokens"} out`);
    return parts.join(" · ");
  }
}

function tokens({ prompt_tokens: input, completion_tokens: output }) {
  return `${input} tokens in, ${output} out`;
}

function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function rate(value) {
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}
