#!/bin/sh
# Compresses the digits model for a Cortex-M7 board under latency, RAM and accuracy limits.
# Usage: demo.sh [OUTPUT_FOLDER]
set -eu
here=$(dirname "$0")
exec tightfit compress "$here/digits.onnx" --data "$here/dataset.yaml" \
  --target nucleo-h7a3zi-q --max-latency 3.5ms --max-ram 16KiB --max-accuracy-drop 0.02 \
  --max-time 2m --local -o "${1:-demo-out}"
