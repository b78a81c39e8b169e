// Markdown as chat models write it: a parser into plain data, and a renderer into DOM nodes.
//
// Safe by construction: text becomes text nodes only, never markup, and the renderer creates no element, attribute or
// address but those named here. Raw HTML in an answer is shown as the text it is. Images are shown as links.
//
// A block is {type, …}: paragraph {children}, heading {level, children}, code {language, text}, list {ordered, start,
// items: blocks[]}, quote {blocks}, table {head, rows}, rule. An inline is a string, {type: "break"}, or
// {type: strong|emphasis|strike|link, children} or {type: "code", text}.

const SAFE_SCHEMES = new Set(["http:", "https:", "mailto:"]);
const MAX_DEPTH = 8; // of lists and quotes inside each other, and of inline marks

// Each pattern takes time in proportion to the line: answers are parsed again with every piece that comes.
const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^\s`]*)(?: [^`]*)?$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +(.*)|\s*)$/;
const TABLE_RULE = /^[|: -]*-[|: -]*$/;
const MAX_INLINE = 2000; // characters that a mark may span

/** The blocks of a text. An unfinished text (while it streams) parses too: an open fence reaches to the end. */
export function parse(text) {
  return parseBlocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
}

function parseBlocks(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (line.trim() === "") {
      at += 1;
    } else if (fence) {
      const end = endOfFence(lines, at, fence[1]);
      blocks.push({ type: "code", language: fence[2], text: lines.slice(at + 1, end).join("\n") });
      at = end + 1;
    } else if (heading) {
      blocks.push({ type: "heading", level: heading[1].length, children: parseInline(heading[2].trim()) });
      at += 1;
    } else if (RULE.test(line)) {
      blocks.push({ type: "rule" });
      at += 1;
    } else if (QUOTE.test(line) && depth < MAX_DEPTH) {
      const end = endWhile(lines, at, (l) => QUOTE.test(l));
      blocks.push({ type: "quote", blocks: parseBlocks(lines.slice(at, end).map((l) => l.replace(QUOTE, "")), depth + 1) });
      at = end;
    } else if (ITEM.test(line) && depth < MAX_DEPTH) {
      const [list, end] = parseList(lines, at, depth);
      blocks.push(list);
      at = end;
    } else if (line.includes("|") && lines[at + 1]?.includes("|") && TABLE_RULE.test(lines[at + 1])) {
      const end = endWhile(lines, at + 2, (l) => l.includes("|"));
      const [head, ...rows] = [line, ...lines.slice(at + 2, end)].map(cells);
      blocks.push({ type: "table", head, rows });
      at = end;
    } else {
      // The line itself always belongs to it: at the greatest depth it may look like a list.
      const end = endWhile(lines, at + 1, (l) => l.trim() !== "" && !startsBlock(l));
      blocks.push({ type: "paragraph", children: parseInline(lines.slice(at, end).map((l) => l.trimStart()).join("\n")) });
      at = end;
    }
  }
  return blocks;
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function endWhile(lines, at, belongs) {
  while (at < lines.length && belongs(lines[at])) at += 1;
  return at;
}

function endOfFence(lines, at, mark) {
  const close = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  return endWhile(lines, at + 1, (line) => !close.test(line));
}

/** Items of one kind at one indent; what is indented further belongs to the item above it. */
function parseList(lines, at, depth) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const list = { type: "list", ordered, start: ordered ? parseInt(marker, 10) : 1, items: [] };
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== ordered || RULE.test(lines[at])) break;
    const own = [item[3] ?? ""];
    at += 1;
    while (at < lines.length) {
      const blank = lines[at].trim() === "";
      const deeper = lines[at].search(/\S/) > indent.length + 1;
      const lazy = !blank && lines[at - 1].trim() !== "" && !startsBlock(lines[at]);
      if (blank ? (lines[at + 1] ?? "").search(/\S/) <= indent.length + 1 : !deeper && !lazy) break;
      own.push(lines[at]);
      at += 1;
    }
    const inner = Math.min(...own.slice(1).filter((l) => l.trim()).map((l) => l.search(/\S/)), indent.length + marker.length + 1);
    list.items.push(parseBlocks([own[0], ...own.slice(1).map((l) => l.slice(Math.min(inner, l.search(/\S|$/))))], depth + 1));
    const next = endWhile(lines, at, (l) => l.trim() === "");
    if (next >= lines.length || !ITEM.test(lines[next])) break;
    at = next;
  }
  return [list, at];
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => parseInline(cell.trim()));
}

const INLINE = [
  [/^(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)/, (m) => ({ type: "code", text: m[2].replace(/\n/g, " ") })],
  [/^!?\[([^\]\n]*)\]\(\s*<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+"[^"\n]*")?\s*\)/, (m, depth) => link(m[2], m[1], depth)],
  [/^<?(https?:\/\/[^\s<>()]*[^\s<>().,:;!?'"*_])>?/, (m) => ({ type: "link", href: m[1], children: [m[1]] })],
  [/^\*\*(?=\S)([\s\S]*?\S)\*\*(?!\*)/, (m, depth) => ({ type: "strong", children: parseInline(m[1], depth) })],
  [/^__(?=\S)([\s\S]*?\S)__(?!\w)/, (m, depth) => ({ type: "strong", children: parseInline(m[1], depth) }), "word"],
  [/^\*(?=[^\s*])([^*]*?[^\s*]|[^*]*\*\*[^*]+\*\*[^*]*?)\*(?!\*)/, (m, depth) => ({ type: "emphasis", children: parseInline(m[1], depth) })],
  [/^_(?=[^\s_])([^_]*[^\s_])_(?!\w)/, (m, depth) => ({ type: "emphasis", children: parseInline(m[1], depth) }), "word"],
  [/^~~(?=\S)([^~]*\S)~~/, (m, depth) => ({ type: "strike", children: parseInline(m[1], depth) })],
  [/^\\([!-/:-@[-`{-~])/, (m) => m[1]],
  [/^ {2,}\n|^\n/, () => ({ type: "break" })],
];
const SPECIAL = /[`*_~\\[!<h\n ]/g;

/** Inlines of a text; neighbouring strings are joined. */
export function parseInline(text, depth = 0) {
  const found = [];
  const add = (piece) => {
    if (typeof piece === "string" && typeof found.at(-1) === "string") found.push(found.pop() + piece);
    else found.push(piece);
  };
  let at = 0;
  while (at < text.length) {
    const inWord = at > 0 && /\w/.test(text[at - 1]);
    const match = depth < MAX_DEPTH && firstMatch(text.slice(at, at + MAX_INLINE), inWord);
    if (match) {
      add(match.make(match.found, depth + 1));
      at += match.found[0].length;
    } else {
      SPECIAL.lastIndex = at + 1;
      const next = SPECIAL.exec(text)?.index ?? text.length;
      add(text.slice(at, next));
      at = next;
    }
  }
  return found;
}

function firstMatch(rest, inWord) {
  for (const [pattern, make, word] of INLINE) {
    if (inWord && (word || rest.startsWith("http"))) continue;
    const found = pattern.exec(rest);
    if (found) return { found, make };
  }
  return null;
}

function link(href, label, depth) {
  const children = parseInline(label || href, depth);
  return safeAddress(href) ? { type: "link", href, children } : { type: "emphasis", children };
}

/** Whether a link may be followed: an absolute address of a scheme that runs nothing. */
export function safeAddress(href) {
  try {
    return SAFE_SCHEMES.has(new URL(href).protocol);
  } catch {
    return false;
  }
}

const INLINE_TAGS = { strong: "strong", emphasis: "em", strike: "s" };

/** DOM nodes of a block. */
export function blockNode(block) {
  switch (block.type) {
    case "paragraph": return element("p", inlineNodes(block.children));
    case "heading": return element(`h${Math.min(block.level + 2, 6)}`, inlineNodes(block.children)); // below the page's own
    case "code": return codeNode(block);
    case "list": return listNode(block);
    case "quote": return element("blockquote", block.blocks.map(blockNode));
    case "table": return tableNode(block);
    default: return element("hr", []);
  }
}

function codeNode({ language, text }) {
  const node = element("pre", [element("code", [document.createTextNode(text)])]);
  node.tabIndex = 0; // it may scroll sideways, and the keyboard must reach it
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  return node;
}

function listNode({ ordered, start, items }) {
  const node = element(ordered ? "ol" : "ul", items.map((blocks) => element("li", blocks.map(blockNode))));
  if (ordered && start !== 1) node.start = start;
  return node;
}

function tableNode({ head, rows }) {
  const row = (tag) => (line) => element("tr", line.map((cell) => element(tag, inlineNodes(cell))));
  return element("table", [element("thead", [row("th")(head)]), element("tbody", rows.map(row("td")))]);
}

function inlineNodes(pieces) {
  return pieces.map((piece) => {
    if (typeof piece === "string") return document.createTextNode(piece);
    if (piece.type === "break") return element("br", []);
    if (piece.type === "code") return element("code", [document.createTextNode(piece.text)]);
    if (piece.type !== "link") return element(INLINE_TAGS[piece.type], inlineNodes(piece.children));
    const node = element("a", inlineNodes(piece.children));
    node.href = piece.href;
    node.target = "_blank";
    node.rel = "noopener noreferrer nofollow";
    return node;
  });
}

function element(tag, children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}
