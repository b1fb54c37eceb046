#!/usr/bin/env bash
# The documentation as a site, in output/docs; a dead link, a missing page or a name that is not there is an error.
#   bash scripts/docs.sh            seconds; open output/docs/index.html
. "$(dirname "$0")/environment.sh" docs

python scripts/docs.py
zensical build --strict
