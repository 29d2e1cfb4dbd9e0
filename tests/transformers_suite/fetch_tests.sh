#!/bin/sh
# Transformers' own tests, which no wheel holds: `fetch_tests.sh FOLDER VERSION` clones those of a release.
set -eu
git clone --quiet --depth 1 --branch "v$2" --filter=blob:none --sparse https://github.com/huggingface/transformers "$1.partial"
git -C "$1.partial" sparse-checkout set --no-cone '/tests/*.py' /tests/generation /tests/exporters /tests/tensor_parallel \
	/tests/kernels /tests/heterogeneity /tests/utils '/tests/models/__init__.py' /tests/models/glmasr /tests/models/whisper \
	/utils/test_module
mv "$1.partial" "$1"
