#!/bin/sh
# Finds a Python and hands over to it. `exec`, so that signals reach the training loop itself.
set -eu
for python in python3 /usr/bin/python3 /usr/local/bin/python3; do
    if command -v "$python" >/dev/null 2>&1; then
        exec "$python" -u train.py "$@"
    fi
done
echo "train.sh: python3 was not found in PATH ($PATH); install it (Debian, Ubuntu: apt-get install python3)" >&2
exit 127
