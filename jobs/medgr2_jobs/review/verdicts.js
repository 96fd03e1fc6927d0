// The reviewer's verdicts, kept by the browser until they are saved to a file. No DOM here: the page shows what it says.
//
// A verdict belongs to a triplet's id and content: where something was generated anew under the same id it is dropped,
// and the page says so. The storage is read again before each change: another tab may have added to it meanwhile.
class Verdicts {
  constructor(storage, key, rows) {
    this.storage = storage;
    this.key = key;
    this.rows = new Map(rows.map(row => [row.id, row]));
  }

  read() {
    try {
      const kept = JSON.parse(this.storage.getItem(this.key) || "{}");
      return kept && typeof kept === "object" ? { by: "", verdicts: {}, ...kept } : { by: "", verdicts: {} };
    } catch {
      return { by: "", verdicts: {} };
    }
  }

  write(change) {
    const kept = this.read();
    change(kept);
    this.storage.setItem(this.key, JSON.stringify(kept));
  }

  get by() { return this.read().by; }
  set by(name) { this.write(kept => { kept.by = name; }); }

  // The verdict of this sitting on a triplet; undefined: none was given.
  of(id) {
    const given = this.read().verdicts[id], row = this.rows.get(id);
    return given && row && given.content === row.content ? given : undefined;
  }

  // right: text of the option that is right; empty: the generator's, unless there is a veto.
  give(id, veto, reason, right = "") {
    const content = this.rows.get(id).content;
    this.write(kept => { kept.verdicts[id] = { veto, right, reason, content, by: kept.by }; });
  }

  // Ids whose verdicts are of something that is not there any more; they are forgotten.
  dropChanged() {
    const changed = Object.entries(this.read().verdicts)
      .filter(([id, given]) => this.rows.has(id) && given.content !== this.rows.get(id).content)
      .map(([id]) => id);
    if (changed.length) this.write(kept => changed.forEach(id => delete kept.verdicts[id]));
    return changed;
  }

  // What is to be imported: a line for each verdict that was given, and none for what nobody decided.
  lines() {
    return [...this.rows.keys()].filter(id => this.of(id)).map(id => {
      const { veto, right = "", reason, content, by } = this.of(id);
      return JSON.stringify({ triplet_id: id, veto, right, reason, by: by || this.by, content }) + "\n";
    });
  }
}
