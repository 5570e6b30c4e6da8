#!/usr/bin/env bash
# Renews what the page is made with: `npm ci` by the lock file, then files and licences into the package. The page itself
# needs neither npm nor node, and loads nothing from elsewhere.
set -euo pipefail
cd "$(dirname "$0")"
npm ci --silent --ignore-scripts
to=../glmtune/page/static/vendor
modules=node_modules
# Modules find each other beside themselves, not by a bare name; maps of the sources are not brought along.
for file in preact/dist/preact.mjs preact/hooks/dist/hooks.mjs htm/dist/htm.mjs; do
  sed -e 's#from *"preact"#from"./preact.mjs"#g' -e '/^\/\/# sourceMappingURL=/d' "$modules/$file" > "$to/$(basename "$file")"
done
cp "$modules/uplot/dist/uPlot.iife.min.js" "$to/uplot.js"
cp "$modules/uplot/dist/uPlot.min.css" "$to/uplot.css"
for name in preact htm uplot; do
  echo "== $name $(node -p "require('./$modules/$name/package.json').version") =="
  cat "$modules/$name/LICENSE"
  echo
done > "$to/LICENSES.txt"
rm -rf "$modules"
