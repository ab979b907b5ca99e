// The sample browser. Texts of models reach the page as text nodes alone, never as markup.
"use strict";
const lmsi = (() => {
  const PAGE = 50;
  const [QUESTION, SPLIT, STYLE, SHARD, PLACE, ANSWERS] = [0, 1, 2, 3, 4, 5];
  const [UID, TASK, TEXT, GOLD] = [0, 1, 2, 3];
  const [ROUND, WINNER, RIGHT, CONFIDENCE, PARSED, TOTAL, TIED] = [0, 1, 2, 3, 4, 5, 6];
  const [WORDS, KEY, OF_RIGHT, KEPT, WHOLE, COUNT, LOGPROB] = [0, 1, 2, 3, 4, 5, 6];
  const controls = document.getElementById("controls");
  const list = document.getElementById("list");
  const status = document.getElementById("status");
  const pages = document.getElementById("pages");
  const shards = new Map();    // number -> rows
  const waiting = new Map();   // number -> {promise, resolve, reject}
  let data = null, found = [], page = 0, only = "", asked = 0;

  const make = (tag, properties = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === undefined || value === null) continue;
      if (name === "cls") node.className = value;
      else node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  const field = (name) => controls.elements[name];
  const percent = (share) => `${(100 * share).toFixed(share && share < 1 ? 1 : 0)}\u00a0%`;
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  const question = (item) => data.questions[item[QUESTION]];
  const identity = (item) => [question(item)[UID], item[STYLE] || item[SPLIT]].join("~");
  const modelName = (round, split) => split === "train" ? `Sampled in round ${round}`
    : round ? `Round ${round}` : "Base";
  const answerOf = (item, side) =>
    item[ANSWERS].find((row) => String(row[ROUND]) === field(side).value);

  // --- data -----------------------------------------------------------------------------------
  const shard = (number, rows) => {
    shards.set(number, rows);
    waiting.get(number)?.resolve(rows);
    waiting.delete(number);
  };
  const load = (number) => {
    if (shards.has(number)) return Promise.resolve(shards.get(number));
    if (waiting.has(number)) return waiting.get(number).promise;
    const entry = {};
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    waiting.set(number, entry);
    const file = `samples-${String(number).padStart(5, "0")}.js`;
    const script = make("script", { src: file });
    script.onload = () => script.remove();
    script.onerror = () => {
      waiting.delete(number);
      script.remove();
      entry.reject(new Error(`${file} is missing beside this page; write the browser again`));
    };
    document.head.append(script);
    return entry.promise;
  };

  // --- filters --------------------------------------------------------------------------------
  const outcome = (answer, before, wanted) => {
    if (!wanted) return true;
    if (!answer) return false;
    const right = answer[RIGHT], was = before ? before[RIGHT] : null;
    switch (wanted) {
      case "none": return answer[WINNER] === null;
      case "unlabelled": return right === null && answer[WINNER] !== null;
      case "right": return right === 1;
      // Without a vote nothing is right.
      case "wrong": return right === 0;
      case "gained": return was === 0 && right === 1;
      case "lost": return was === 1 && right === 0;
      default: return was !== null && right !== null && was !== right;
    }
  };
  const matches = (item, words) => {
    const asked_ = question(item);
    const ends = item[ANSWERS].map((row) => row[WINNER] ?? "");
    if ([asked_[TEXT], asked_[UID], asked_[GOLD] ?? "", ...ends].some((text) => has(text, words))) {
      return true;
    }
    if (!field("deep").checked) return false;
    const rows = shards.get(item[SHARD])?.[item[PLACE]] ?? [];
    return rows.some(([, texts]) => texts.some((row) => has(row[WORDS], words)));
  };
  const has = (text, words) => text.toLowerCase().includes(words);
  const bound = (name, otherwise) =>
    field(name).value === "" ? otherwise : Number(field(name).value) / 100;
  const chosen = () => {
    if (only) return data.items.filter((item) => identity(item) === only);
    const [low, high] = [bound("low", -1), bound("high", 2)];
    const words = field("text").value.trim().toLowerCase();
    const rows = data.items.filter((item) => {
      if (item[SPLIT] !== field("split").value) return false;
      if (field("task").value && question(item)[TASK] !== field("task").value) return false;
      if (field("style").value && item[STYLE] !== field("style").value) return false;
      const answer = answerOf(item, "right");
      if (!outcome(answer, answerOf(item, "left"), field("outcome").value)) return false;
      if ((low > 0 || high < 1) && !answer) return false;
      if (answer && (answer[CONFIDENCE] < low - 1e-9 || answer[CONFIDENCE] > high + 1e-9)) return false;
      if (field("some").value === "tied" && !answer?.[TIED]) return false;
      if (field("some").value === "unparsed" && !(answer && answer[PARSED] < answer[TOTAL])) return false;
      return !words || matches(item, words);
    });
    const sign = { low: 1, high: -1 }[field("sort").value];
    const confidence = (item) => answerOf(item, "right")?.[CONFIDENCE] ?? 0;
    return sign ? rows.sort((a, b) => sign * (confidence(a) - confidence(b))) : rows;
  };

  // --- the address bar ------------------------------------------------------------------------
  const NAMES = ["split", "task", "style", "left", "right", "outcome", "low", "high", "some", "sort", "text"];
  const remember = () => {
    const state = new URLSearchParams();
    for (const name of NAMES) {
      if (field(name).value && field(name).value !== field(name).dataset.usual) {
        state.set(name, field(name).value);
      }
    }
    if (field("deep").checked) state.set("deep", "1");
    if (page) state.set("page", page + 1);
    if (only) state.set("item", only);
    const hash = state.toString();
    if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? `#${hash}` : "#");
  };
  const recall = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    only = state.get("item") ?? "";
    field("split").value = state.get("split") ?? field("split").dataset.usual;
    offer();
    for (const name of NAMES.slice(1)) {
      field(name).value = state.get(name) ?? field(name).dataset.usual ?? "";
      if (field(name).tagName === "SELECT" && field(name).selectedIndex < 0) {
        field(name).value = field(name).dataset.usual ?? "";
      }
    }
    field("deep").checked = state.has("deep");
    page = Math.max(0, (parseInt(state.get("page"), 10) || 1) - 1);
    if (only) {
      const item = data.items.find((one) => identity(one) === only);
      if (item) { field("split").value = item[SPLIT]; offer(); }
    }
  };
  const fill = (name, pairs, usual) => {
    const select = field(name), before = select.value;
    select.replaceChildren(...pairs.map(([value, words]) => make("option", { value }, words)));
    select.dataset.usual = usual;
    select.value = pairs.some(([value]) => value === before) ? before : usual;
  };
  const offer = () => {  // what the chosen split has
    const split = field("split").value;
    const items = data.items.filter((item) => item[SPLIT] === split);
    const distinct = (read) => [...new Set(items.flatMap(read))];
    fill("task", [["", "all"], ...distinct((i) => [question(i)[TASK]]).map((t) => [t, t])], "");
    const styles = distinct((i) => [i[STYLE]]).filter(Boolean);
    fill("style", [["", "all"], ...styles.map((s) => [s, data.styles[s] ?? s])], "");
    const rounds = distinct((i) => i[ANSWERS].map((row) => row[ROUND])).sort((a, b) => a - b);
    const models = rounds.map((r) => [String(r), modelName(r, split)]);
    fill("left", models, String(rounds[0] ?? ""));
    fill("right", models, String(rounds[rounds.length - 1] ?? ""));
  };

  // --- the list -------------------------------------------------------------------------------
  const mark = (answer) => {
    if (!answer) return ["flat", "–"];
    if (answer[WINNER] === null) return ["flat", "no vote"];
    if (answer[RIGHT] === null) return ["flat", "no label"];
    return answer[RIGHT] ? ["up", "✓ right"] : ["down", "✗ wrong"];
  };
  const sides = (item) => {
    const both = field("left").value === field("right").value ? ["right"] : ["left", "right"];
    return both.map((side) => answerOf(item, side)).filter(Boolean);
  };
  const row = (item) => {
    const asked_ = question(item), answers = sides(item);
    const badges = answers.flatMap((answer, i) => {
      const [style, words] = mark(answer);
      return [i ? " → " : "", make("span", { cls: `badge ${style}` }, words)];
    });
    const style = item[STYLE] ? `, ${data.styles[item[STYLE]] ?? item[STYLE]}` : "";
    const sure = answers.map((answer) => percent(answer[CONFIDENCE])).join(" → ");
    const summary = make("summary", {},
      make("span", { cls: "badges" }, ...badges),
      make("span", { cls: "question" }, asked_[TEXT].replace(/\s+/g, " ").slice(0, 300)),
      make("span", { cls: "quiet" }, `${asked_[TASK]}${style}, confidence ${sure || "–"}`));
    const details = make("details", { cls: "example" }, summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) open(item, details);
    });
    return details;
  };
  const open = async (item, details) => {
    const asked_ = question(item);
    const link = make("a", { href: `#${new URLSearchParams({ item: identity(item) })}` }, "link to this question");
    details.append(make("div", { cls: "asked" },
      make("pre", {}, asked_[TEXT]),
      make("p", {}, "Right answer: ", make("b", {}, asked_[GOLD] ?? "no label"), ` · ${asked_[UID]} · `, link)));
    let texts;
    try {
      texts = (await load(item[SHARD]))[item[PLACE]];
    } catch (error) {
      details.append(make("p", { cls: "alarms" }, error.message));
      return;
    }
    const columns = sides(item).map((answer) => {
      const own = texts.find(([round]) => round === answer[ROUND])?.[1] ?? [];
      return column(item, answer, own);
    });
    details.append(make("div", { cls: columns.length > 1 ? "beside two" : "beside" }, ...columns));
  };
  const column = (item, answer, texts) => {
    const [style, words] = mark(answer);
    const groups = new Map();
    for (const text of texts) {
      const key = text[KEY] === null ? null : String(text[KEY]);
      groups.set(key, [...(groups.get(key) ?? []), text]);
    }
    const size = (rows) => rows.reduce((total, text) => total + text[COUNT], 0);
    // The vote's samples first, then the dissenting ones, what was not parsed last.
    const rank = ([key, rows]) => [key === answer[WINNER] ? 0 : key === null ? 2 : 1, -size(rows)];
    const ordered = [...groups].sort((a, b) => {
      const [x, y] = [rank(a), rank(b)];
      return x[0] - y[0] || x[1] - y[1];
    });
    const parts = ordered.map(([key, rows]) => {
      const right = rows[0][OF_RIGHT];
      const verdict = key === null ? "unparsed" : right === null ? "" : right ? "✓ right" : "✗ wrong";
      const dissent = key !== null && key !== answer[WINNER] ? "dissenting" : "";
      const head = make("h4", {},
        make("b", {}, key === null ? "no answer" : key), " ",
        make("span", { cls: `badge ${right ? "up" : right === 0 ? "down" : "flat"}` }, verdict), " ",
        make("span", { cls: "quiet" }, [count(size(rows), "sample"), percent(size(rows) / answer[TOTAL]), dissent].filter(Boolean).join(", ")));
      return make("section", { cls: key === answer[WINNER] ? "agree" : "dissent" }, head, ...rows.map(sample));
    });
    const tied = answer[TIED] ? ", tied" : "";
    return make("div", { cls: "model" },
      make("h3", {}, modelName(answer[ROUND], item[SPLIT]), " ", make("span", { cls: `badge ${style}` }, words)),
      make("p", { cls: "quiet" }, `Vote ${answer[WINNER] ?? "none"}, confidence ${percent(answer[CONFIDENCE])}${tied}; ${answer[PARSED]} of ${answer[TOTAL]} parsed`),
      ...(parts.length ? parts : [make("p", { cls: "empty" }, "No samples were saved.")]));
  };
  const sample = (text) => {
    const facts = [
      text[COUNT] > 1 ? `${text[COUNT]} times` : "",
      text[KEPT] ? "agrees with the vote" : "",
      text[WHOLE] ? "" : "cut by the token limit",
      `log-probability ${text[LOGPROB]}`,
    ];
    return make("div", { cls: `sample ${text[KEPT] ? "kept" : "dropped"}` },
      make("pre", {}, text[WORDS].trim() === "" ? "(empty)" : text[WORDS]),
      make("p", { cls: "quiet" }, facts.filter(Boolean).join(" · ")));
  };

  // --- showing --------------------------------------------------------------------------------
  const show = () => {
    found = chosen();
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    page = Math.min(page, last);
    const rows = found.slice(page * PAGE, (page + 1) * PAGE);
    list.replaceChildren(...rows.map(row));
    const all = data.items.filter((item) => item[SPLIT] === field("split").value).length;
    const range = rows.length ? `${page * PAGE + 1} to ${page * PAGE + rows.length} of ` : "";
    const of = found.length === all ? count(all, "row") : `${count(found.length, "row")} (${all.toLocaleString("en")} without filters)`;
    status.textContent = `${range}${of}; ${count(data.samples, "sample")} in all.`;
    if (only) status.append(" ", make("a", { href: "#" }, "Show all questions"));
    const turn = (words, to) => {
      const button = make("button", { type: "button" }, words);
      button.disabled = to < 0 || to > last;
      button.addEventListener("click", () => turnTo(to));
      return button;
    };
    pages.replaceChildren(turn("Previous page", page - 1),
      make("span", {}, `Page ${page + 1} of ${last + 1}`), turn("Next page", page + 1));
    remember();
    if (only && list.firstElementChild) list.firstElementChild.open = true;
  };
  const turnTo = (to) => { page = to; show(); window.scrollTo(0, 0); list.querySelector("summary")?.focus(); };
  const refresh = async () => {
    const turn = ++asked;
    if (field("deep").checked && field("text").value.trim()) {
      const numbers = [...new Set(data.items.filter((i) => i[SPLIT] === field("split").value).map((i) => i[SHARD]))];
      for (const [done, number] of numbers.entries()) {
        if (shards.has(number)) continue;
        status.textContent = `Reading the samples: ${done} of ${numbers.length} files …`;
        try {
          await load(number);
        } catch (error) {
          status.textContent = error.message;
          return;
        }
        if (turn !== asked) return;
      }
    }
    show();
  };

  // --- events ---------------------------------------------------------------------------------
  let typing = 0;
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(() => { location.hash = ""; only = ""; recall(); refresh(); }));
  controls.addEventListener("input", (event) => {
    only = "";
    page = 0;
    if (event.target.name === "split") offer();
    clearTimeout(typing);
    typing = setTimeout(refresh, event.target.name === "text" ? 250 : 0);
  });
  window.addEventListener("hashchange", () => { if (data) { recall(); refresh(); } });
  document.addEventListener("keydown", (event) => {
    if (!data || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const summaries = [...list.querySelectorAll("summary")];
    const here = summaries.indexOf(document.activeElement);
    const steps = { j: 1, k: -1 };
    if (event.key === "/") field("text").focus();
    else if (event.key in steps) summaries[Math.min(Math.max(here + steps[event.key], 0), summaries.length - 1)]?.focus();
    else if (event.key === "n" && (page + 1) * PAGE < found.length) turnTo(page + 1);
    else if (event.key === "p" && page > 0) turnTo(page - 1);
    else return;
    event.preventDefault();
  });
  const start = (index) => {
    data = index;
    const splits = new Set(data.items.map((item) => item[SPLIT]));
    fill("split", [["test", "test"], ["train", "training"]].filter(([value]) => splits.has(value)), splits.has("test") ? "test" : "train");
    recall();
    refresh();
  };
  return { start, shard };
})();
