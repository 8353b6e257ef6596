// Fetch the pinned browser packages and write webapp/static/vendor/. A development tool: its result is checked in.
//
//   node scripts/vendor.js [FOLDER]     FOLDER: where to write instead, to compare with what is checked in
//
// Works in a temporary folder with `npm install --ignore-scripts` of exact versions; nothing is added to this project.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const target = resolve(process.argv[2] ?? join(here, "../webapp/static/vendor"));

const ESBUILD = "0.28.2";
/** What D3 is made of here: direct packages, then what of theirs is used. All pinned. What draws transitions is left out. */
const D3 = {
  "d3-hierarchy": "3.1.3", "d3-selection": "3.0.1", "d3-zoom": "3.0.1",
  "d3-dispatch": "3.0.2", "d3-drag": "3.0.1",
};
const KATEX_FONTS = [
  "AMS-Regular", "Caligraphic-Bold", "Caligraphic-Regular", "Fraktur-Bold", "Fraktur-Regular", "Main-Bold", "Main-BoldItalic", "Main-Italic", "Main-Regular",
  "Math-BoldItalic", "Math-Italic", "SansSerif-Bold", "SansSerif-Italic", "SansSerif-Regular", "Script-Regular", "Size1-Regular", "Size2-Regular", "Size3-Regular",
  "Size4-Regular", "Typewriter-Regular",
];
/** Taken as published: package, version, [file in the package, file here]. uPlot's ES module comes unminified. */
const COPIED = [
  ["uplot", "1.6.32", [["dist/uPlot.esm.js", "uPlot.js"], ["dist/uPlot.min.css", "uPlot.min.css"], ["dist/uPlot.d.ts", "uPlot.d.ts"]]],
  ["katex", "0.19.1", [["dist/katex.mjs", "katex.js"], ["dist/katex.min.css", "katex.min.css"], ...KATEX_FONTS.map((face) => [`dist/fonts/KaTeX_${face}.woff2`, `fonts/KaTeX_${face}.woff2`])]],
  ["@fontsource-variable/inter", "5.3.0", [["files/inter-latin-wght-normal.woff2", "fonts/inter.woff2"]]],
  ["@fontsource-variable/jetbrains-mono", "5.3.0", [["files/jetbrains-mono-latin-wght-normal.woff2", "fonts/jetbrains-mono.woff2"]]],
];

const work = mkdtempSync(join(tmpdir(), "arborist-vendor-"));
try {
  const dependencies = { ...D3, esbuild: ESBUILD };
  for (const [name, version] of COPIED) dependencies[name] = version;
  writeFileSync(join(work, "package.json"), JSON.stringify({ private: true, dependencies, overrides: D3 }));
  // esbuild's binary comes as an optional package, so no install script has to run.
  execFileSync("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], { cwd: work, stdio: "inherit" });
  const lock = JSON.parse(readFileSync(join(work, "package-lock.json"), "utf8")).packages;

  mkdirSync(join(target, "fonts"), { recursive: true });
  mkdirSync(join(target, "licences"), { recursive: true });
  const files = [];
  const packages = [];

  /** Version, integrity and licence of an installed package; its licence text is copied beside the files. */
  function describe(name, pinned) {
    const entry = lock[`node_modules/${name}`];
    if (entry?.version !== pinned) throw new Error(`${name}: npm installed ${entry?.version}, expected exactly ${pinned}.`);
    const licence = licenceText(join(work, "node_modules", name));
    writeFileSync(join(target, "licences", `${name.replace("@", "").replace("/", "-")}.txt`), licence);
    return { name, version: entry.version, licence: entry.license, integrity: entry.integrity };
  }

  /** One minified ES module without imports. */
  function bundle(entry, file, title, more = []) {
    const banner = `// ${title}. Made by scripts/vendor.js; see manifest.json and licences/.`;
    const flags = ["--bundle", "--format=esm", "--target=es2022", "--minify", "--legal-comments=none", "--log-level=warning"];
    const esbuild = join(work, "node_modules/.bin/esbuild");
    execFileSync(esbuild, [entry, ...flags, ...more, `--banner:js=${banner}`, `--outfile=${join(target, file)}`], { cwd: work, stdio: "inherit" });
  }

  for (const [name, version] of Object.entries(D3)) packages.push({ ...describe(name, version), file: "d3.js" });
  copyFileSync(join(here, "vendor_d3.js"), join(work, "entry.js"));
  copyFileSync(join(here, "vendor_d3_without.js"), join(work, "without.js"));
  bundle("entry.js", "d3.js", "D3, the parts used by Arborist", ["--alias:d3-transition=./without.js", "--alias:d3-interpolate=./without.js"]);
  for (const name of ["d3", "katex"]) copyFileSync(join(here, `vendor_${name}.d.ts`), join(target, `${name}.d.ts`));
  files.push("d3.js");

  for (const [name, version, copies] of COPIED) {
    const described = describe(name, version);
    for (const [from, to] of copies) {
      const source = join(work, "node_modules", name, from);
      if (to.endsWith(".woff2")) copyFileSync(source, join(target, to));
      else if (from.endsWith(".esm.js") || from.endsWith(".mjs")) bundle(source, to, `${name} ${version}`);
      // Source maps are not shipped, and a comment that names one would be a request that fails; so would fonts of older formats be.
      else writeFileSync(join(target, to), readFileSync(source, "utf8").replace(/^\/[/*][#@] sourceMappingURL=.*$/gm, "").replace(/,url\([^)]*\.(?:woff|ttf)\) format\("(?:woff|truetype)"\)/g, "").trimEnd() + "\n");
      packages.push({ ...described, file: to });
      files.push(to);
    }
  }

  const manifest = {
    made_by: "scripts/vendor.js",
    packages,
    files: files.map((file) => {
      const bytes = readFileSync(join(target, file));
      return { file, bytes: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") };
    }),
  };
  writeFileSync(join(target, "manifest.json"), JSON.stringify(manifest, null, 1) + "\n");
  for (const { file, bytes } of manifest.files) console.log(`${String(bytes).padStart(8)}  ${file}`);
} finally {
  rmSync(work, { recursive: true, force: true });
}

/** The licence file of an installed package; every package here ships one. */
function licenceText(folder) {
  for (const file of ["LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE"]) {
    try {
      return readFileSync(join(folder, file), "utf8");
    } catch (error) {
      if (error.code !== "ENOENT") throw error;
    }
  }
  throw new Error(`${folder} ships no licence file. Vendor only what says how it may be used.`);
}
