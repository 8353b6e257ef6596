import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";

const root = new URL("../../", import.meta.url).pathname;
const vendor = join(root, "webapp/static/vendor");
const manifest = JSON.parse(readFileSync(join(vendor, "manifest.json"), "utf8"));

/** @returns {string[]} */
const filesBelow = (folder) =>
  readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? filesBelow(path) : [path];
  });
const own = filesBelow(join(root, "webapp/static/js")).filter((path) => path.endsWith(".js"));
const templates = filesBelow(join(root, "templates"));

test("vendored files are the ones that were vetted, each with its licence", () => {
  for (const { file, sha256, bytes } of manifest.files) {
    const content = readFileSync(join(vendor, file));
    assert.equal(content.length, bytes, file);
    assert.equal(createHash("sha256").update(content).digest("hex"), sha256, file);
  }
  for (const { name, version, integrity, licence } of manifest.packages) {
    assert.match(version, /^\d+\.\d+\.\d+$/, name);
    assert.match(integrity, /^sha512-/, name);
    assert.ok(licence, name);
    assert.ok(existsSync(join(vendor, "licences", `${name.replace("@", "").replace("/", "-")}.txt`)), name);
  }
  const known = new Set(["manifest.json", "d3.d.ts", "katex.d.ts", ...manifest.files.map(({ file }) => file)]);
  const found = filesBelow(vendor).map((path) => path.slice(vendor.length + 1)).filter((path) => !path.startsWith("licences/"));
  assert.deepEqual(found.filter((file) => !known.has(file)), []);
});

test("nothing of the page comes from elsewhere", () => {
  for (const path of [...own, ...templates, ...filesBelow(join(root, "webapp/static/css"))]) {
    const text = readFileSync(path, "utf8").replaceAll("http://www.w3.org/2000/svg", "");
    assert.doesNotMatch(text, /https?:\/\//, path);
  }
});

test("text never becomes markup or code in our own modules", () => {
  const forbidden = /\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|eval\(|new Function|setAttribute\(\s*["'](style|on))/;
  for (const path of own) assert.doesNotMatch(readFileSync(path, "utf8"), forbidden, path);
  const parsers = own.filter((path) => readFileSync(path, "utf8").includes("DOMParser"));
  assert.deepEqual(parsers.map((path) => path.split("/").at(-1)), ["regions.js"]);
});

test("templates have no inline script, style or handler, and never switch escaping off", () => {
  for (const path of templates) {
    let text = readFileSync(path, "utf8");
    if (path.endsWith("exports/page_head.html")) {
      // A file to download, which carries its style and whose own policy allows that alone; the site never shows it.
      assert.match(text, /Content-Security-Policy[^>]*default-src 'none'/);
      assert.equal(text.match(/<style/g)?.length, 1);
      text = text.replace("<style", "");
    }
    assert.doesNotMatch(text, /\sstyle\s*=|<style|\son[a-z]+\s*=\s*["']|\|\s*safe\b|autoescape off/, path);
    for (const [tag] of text.matchAll(/<script[^>]*>/g)) assert.match(tag, /type="module" src=/, path);
  }
});
