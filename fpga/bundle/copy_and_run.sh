#!/usr/bin/env bash
# Copy what the board needs, run it there, and bring the logs back.
#   ./copy_and_run.sh USER@BOARD [FOLDER_ON_BOARD]
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 USER@BOARD [FOLDER_ON_BOARD]" >&2
    exit 2
fi
bundle="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
board="$1"
folder="${2:-hwnas_bundle}"

# The shell of the board reads the command once more, and knows where home is.
# shellcheck disable=SC2088
case "$folder" in
    "~/"*) quoted="~/$(printf %q "${folder#"~/"}")" ;;
    *) quoted="$(printf %q "$folder")" ;;
esac

# shellcheck disable=SC2029
ssh "$board" "mkdir -p $quoted"
scp -r "$bundle/board" "$bundle/xmodels" "$bundle/hwnas_bundle.json" "$board:$folder/"
# shellcheck disable=SC2029
ssh -t "$board" "python3 $quoted/board/run.py"
scp -r "$board:$folder/logs" "$bundle/"
echo "now: hwnas parse '$bundle/logs' --space SPACE --out table.csv"
